"""Unusual replies of a foreign app: beyond the budget, outside arrays, never pulled, impossible to send."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from support.shipped_commands import our_link

APPS = Path(__file__).parent / "apps"


def test_large_and_unpulled_replies_are_accepted_or_refused_and_the_node_stays(tmp_path: Path) -> None:
    app, out = str(APPS / "bulk"), tmp_path / "link"
    (tmp_path / "run.toml").write_text("[server]\ningest_mib = 1\n")
    options = [str(tmp_path / "run.toml"), "--app", app, "-c", f"out={json.dumps(str(tmp_path))}", "--nodes", "1"]
    with our_link(out, *options) as link:
        link.join("node-0", "--app", app)
        events = link.finish()
        assert link.clients[0].wait(30) == 0
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers["alone"] == [1, 0, True]
    assert answers["config"] == [2, 0, True]
    assert answers["down"] == [3, 40 << 20, True]
    for key in ("too large", "too large config"):
        code, reason = answers[key]
        assert code == 4
        assert "at most 8 MiB are accepted, 8 times server.ingest_mib = 1: raise server.ingest_mib" in reason
    assert answers["after"] == [6, 0, True]
    assert answers["unsendable"][0] == 2
    assert "record 'large': 'number': Value out of range" in answers["unsendable"][1]
    assert answers["later"] == [7, 0, True]
    assert [len(each) for each in answers["pulled"]].count(2) >= 2, "some of 12 MiB were dropped for 8"
    assert answers["pulled"][-1] == [5, 0, True]
    kinds = [event["kind"] for event in events]
    assert kinds.count("too-large") == 2
    assert "dropped-reply" in kinds
    assert not {"lost", "rejected", "quarantine"} & set(kinds)


def test_the_model_is_in_the_run_folder_and_changed_code_is_refused(tmp_path: Path) -> None:
    app, changed = APPS / "fedavg", tmp_path / "changed"
    changed.mkdir()
    for path in app.iterdir():
        (changed / path.name).write_text(path.read_text() if path.is_file() else "")
    (changed / "client.py").write_text((app / "client.py").read_text() + "\n# another one\n")
    for options, refused in (([], True), (["--any-code"], False)):
        out = tmp_path / ("refused" if refused else "taken")
        with our_link(out, "--app", str(app), "-c", f"out={json.dumps(str(out))}", *options) as link:
            link.join("node-0", "--app", str(app), "--node-config", "partition-id=0")
            link.join("node-1", "--app", str(changed), "--node-config", "partition-id=1")
            if refused:
                assert link.clients[1].wait(60) == 6
                assert "with other code than this server" in (out / "node-1.log").read_text()
                continue
            events = link.finish()
    assert [event["node"] for event in events if event["kind"] == "other-code"] == ["node-1"]
    with np.load(out / "model.npz") as expected, np.load(out / "run" / "model.npz") as kept:
        values = [kept[key].tobytes() for key in kept]
        assert values == [expected[key].tobytes() for key in expected]
