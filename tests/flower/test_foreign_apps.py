"""Flower apps that know nothing about fednc give the same files over our link as on stock Flower, byte for byte.

The apps' modules are called `server` and `client`, like many others and like our own folders.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fednc.common.security.authority import Authority
from fednc.common.security.credentials import Holder, Role
from fednc.common.wire.failure_reasons import SENTENCES
from support.shipped_commands import OurLink, our_link
from support.stock_flower import BIN, environment, stock_flower

YEAR = timedelta(days=365)
APPS = Path(__file__).parent / "apps"


def join_all(link: OurLink, app: str, nodes: Iterable[dict[str, Any]]) -> None:
    for index, config in enumerate(nodes):
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in {"partition-id": index, **config}.items())
        link.join(f"node-{index}", "--app", str(APPS / app), "--node-config", pairs, "--grace", "1")


def on_our_link(app: str, out: Path) -> None:
    with our_link(out, "--app", str(APPS / app), "-c", f"out={json.dumps(str(out))}") as link:
        join_all(link, app, [{}, {}])
        link.finish()


def on_stock_flower(app: str, out: Path) -> None:
    with stock_flower(out) as flower:
        for index in range(2):
            flower.add_node(f"node-{index}", {"partition-id": index})
        flower.run(APPS / app, {"out": str(out)})


def read(path: Path) -> Any:
    if path.suffix == ".json":
        return path.read_text()
    with np.load(path) as arrays:
        return {key: (value.dtype, value.shape, value.tobytes()) for key, value in arrays.items()}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("app", "files"),
    [("fedavg", ["model.npz", "metrics.json"]), ("dtypes", ["answers.json"]), ("legacy", ["model.npz"])],
)
def test_an_app_writes_the_same_files_as_on_stock_flower(app: str, files: list[str], tmp_path: Path) -> None:
    ours, stock = tmp_path / "ours", tmp_path / "stock"
    on_our_link(app, ours)
    on_stock_flower(app, stock)
    for name in files:
        assert len((ours / name).read_bytes()) > 100
        assert read(ours / name) == read(stock / name), name


@pytest.mark.timeout(300)
def test_nodes_that_raise_die_or_hang_do_not_stop_the_round(tmp_path: Path) -> None:
    """This happens in round 2; in round 3 they are back, with the state that they had after round 1."""
    app, hows = "trouble", ["none", "raise", "exit", "leave", "sleep"]
    with our_link(tmp_path, "--app", str(APPS / app), "-c", f"out={json.dumps(str(tmp_path))}") as link:
        join_all(link, app, [{"how": how} for how in hows])
        link.finish()
    first, second, third = json.loads((tmp_path / "rounds.json").read_text())
    assert first == {"seen": {str(part): 1 for part in range(5)}, "errors": []}
    assert second["seen"] == {"0": 2}
    assert second["errors"] == [
        f"AppProcessEnded: {SENTENCES['app-failed']}",
        f"SystemExit: {SENTENCES['app-failed']}",
        f"ZeroDivisionError: {SENTENCES['app-failed']}",
    ]
    assert third["seen"] == {"0": 3, **{str(part): 2 for part in range(1, 5)}}


def test_an_interrupted_server_ends_its_app_and_tells_the_clients(tmp_path: Path) -> None:
    with our_link(tmp_path, "--app", str(APPS / "trouble"), "-c", f"out={json.dumps(str(tmp_path))}") as link:
        join_all(link, "trouble", [{"how": "none"}])  # the app waits for five
        until_ready(link)
        link.server.send_signal(signal.SIGINT)
        link.finish(code=130)
        assert link.clients[0].wait(10) == 9


def until_ready(link: OurLink) -> int:
    """Process id of the first app that is ready."""
    give_up = time.monotonic() + 60
    while not (ready := [event for event in link.events() if event["kind"] == "ready"]):
        assert time.monotonic() < give_up, link.logs()
        time.sleep(0.1)
    return int(ready[0]["pid"])


def test_an_app_ends_with_its_client(tmp_path: Path) -> None:
    with our_link(tmp_path, "--app", str(APPS / "trouble"), "-c", f"out={json.dumps(str(tmp_path))}") as link:
        join_all(link, "trouble", [{"how": "none"}])
        pid = until_ready(link)
        assert psutil.pid_exists(pid)
        link.clients[0].kill()
        give_up = time.monotonic() + 10
        while psutil.pid_exists(pid) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert not psutil.pid_exists(pid)


def refusal(code: int, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [BIN / "fednc", *arguments],
        env=environment(folder / "home"),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return " ".join(done.stderr.split())


def test_a_client_with_another_app_is_refused(tmp_path: Path) -> None:
    with our_link(tmp_path, "--app", str(APPS / "fedavg"), "-c", f"out={json.dumps(str(tmp_path))}") as link:
        client = ["client", "--server", f"127.0.0.1:{link.port}", "--once"]
        text = refusal(6, tmp_path, *client, "--app", str(APPS / "legacy"))
        assert "runs the app fedavg/1.0.0, this client legacy/1.0.0" in text
        assert "fedavg/1.0.0" in refusal(6, tmp_path, *client, "--data", "digits")


def test_an_app_over_tls_and_its_dry_run(tmp_path: Path) -> None:
    authority, folder = Authority.create(tmp_path / "ca", "apps"), APPS / "fedavg"
    authority.issue_server(["127.0.0.1"], YEAR)
    certs = [str(authority.issue_certificate(Holder(Role.NODE, f"node-{i}"), YEAR)) for i in range(2)]
    (tmp_path / "run.toml").write_text(f"[server]\ncerts = {json.dumps(str(authority.server_folder))}\n")
    app, out = ("--app", str(folder)), f"out={json.dumps(str(tmp_path))}"
    with our_link(tmp_path, "run.toml", *app, "-c", out) as link:
        client = ["client", "--server", f"127.0.0.1:{link.port}", "--once", *app]
        assert "dry run" in refusal(0, tmp_path, *client, "--certs", certs[0], "--dry-run")
        assert "cannot be used as 'node-0'" in refusal(
            6, tmp_path, *client, "--certs", certs[1], "--name", "node-0", "--dry-run"
        )
        assert [event["text"] for event in link.events() if event["kind"] == "attend"] == [
            "node-0 attends for a dry run"
        ]
        for index, each in enumerate(certs):
            link.join(f"node-{index}", *app, "--certs", each, "--node-config", f"partition-id={index}")
        events = link.finish()
    assert [event["auth"] for event in events if event["kind"] == "listening"] == ["mtls"]
    on_our_link("fedavg", tmp_path / "plain")
    for name in ("model.npz", "metrics.json"):
        assert read(tmp_path / name) == read(tmp_path / "plain" / name)


def test_settings_and_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    app = str(APPS / "fedavg")
    assert "'lr' is not present" in refusal(2, tmp_path, "server", "--app", app, "-c", "lr=1")
    assert "not a list of key=value" in refusal(2, tmp_path, "server", "--app", app, "-c", "out=[")
    assert "does not contain a Flower app" in refusal(2, tmp_path, "server", "--app", str(tmp_path))
    assert "nothing to serve" in refusal(2, tmp_path, "server")
    assert "--data" in refusal(2, tmp_path, "client", "--server", "127.0.0.1:1")
