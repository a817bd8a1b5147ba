"""`fednc console` beside `fednc server` and clients, all as processes: what its buttons do to the run."""

from __future__ import annotations

import getpass
import json
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fednc.cli.console import command
from fednc.common.errors import ConfigError
from support.command_processes import fednc, port_of, wait_for, write_run
from support.console_browser import Visitor


def started(stack: ExitStack, *arguments: object, cwd: Path) -> subprocess.Popen[str]:
    process = fednc(*arguments, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def test_an_operator_pauses_resumes_drops_readmits_and_stops_a_run(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, total=10_000)
    folder = tmp_path / "runs" / "real"
    with ExitStack() as stack:
        server = started(stack, "server", run_file, "--folder", folder, cwd=tmp_path)
        port = port_of(folder)
        for name in ("a", "b"):
            started(
                stack, "client", "--server", f"127.0.0.1:{port}", "--data", "digits", "--name", name, cwd=tmp_path
            )
        where = tmp_path / "console.json"
        started(
            stack,
            "console",
            "--server",
            f"127.0.0.1:{port}",
            "--runs",
            folder.parent,
            "--listen",
            "127.0.0.1:0",
            "--json",
            where,
            cwd=tmp_path,
        )
        found = wait_for(lambda: json.loads(where.read_text() or "null") if where.exists() else None)
        assert where.stat().st_mode & 0o077 == 0, "nobody else may read the key"
        visitor = Visitor(found["address"])
        assert visitor.log_in(found["key"]).status == 303

        def page(path: str = "/") -> str:
            return visitor.get(path).text

        def round_of() -> int:
            return int(visitor.get("/").text.partition("round <b>")[2].partition("<")[0] or 0)

        wait_for(lambda: round_of() >= 2)
        assert "accuracy" in page()
        assert "class means against the frame" in page()

        visitor.act("pause")
        wait_for(lambda: '<b class="warn">paused</b>' in page())
        held = round_of()
        told = recorded(folder, "control")[-1]
        assert told["command"] == "pause"
        assert told["operator"] == f"an operator for {getpass.getuser()!r}", "the log names the person"
        assert "Resume" in page()
        visitor.act("resume")
        wait_for(lambda: round_of() > held)

        visitor.act("drop", node="b")
        wait_for(lambda: "dropped" in page("/client?name=b"))
        visitor.act("drop", node="nobody")
        assert "has never seen a node" in page()
        visitor.act("readmit", node="b")
        wait_for(lambda: "ready" in page("/client?name=b") or "working" in page("/client?name=b"))

        visitor.act("stop")
        server.wait(60)
        wait_for(lambda: "an operator stopped the run" in page())
        assert server.returncode == 0
        assert (folder / "summary.json").exists()
        wait_for(lambda: "stopped" in page("/runs"))  # the list is read again every two seconds
        assert visitor.act("pause").status == 303
        wait_for(lambda: "no answer" in page() or "already over" in page())


def recorded(folder: Path, kind: str) -> list[dict[str, object]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["kind"] == kind]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"runs": [Path("nowhere")]}, "no such folder"),
        ({"listen": "0.0.0.0:0"}, "--access DIR"),
        ({"server": "fl.example.org:8440"}, "is another machine"),
        ({"access": Path("nowhere")}, "fednc certs"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_listens(
    options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        command(**{"listen": "127.0.0.1:0", **options})
