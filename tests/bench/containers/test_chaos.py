"""Chaos and health checks, without containers: kills happen as planned, and only live processes are healthy."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from fednc.bench.containers import chaos, processes
from fednc.server.storage.events import NodeLost, RunDone
from support.container_records import FEDNC, PYTHON, add_process, over, write_records
from support.local_servers import serving

ROOT = Path(__file__).parents[3]


# ---- chaos -------------------------------------------------------------------------------------------------


def test_events_are_followed_as_they_are_written(tmp_path: Path) -> None:
    path, seen = tmp_path / "events.jsonl", list[str]()
    follower = threading.Thread(target=lambda: seen.extend(e.kind for e in chaos.follow(path)))
    follower.start()
    events = [over(1), NodeLost(text="anna is gone", node="anna"), RunDone(text="", folder="run")]
    text = write_records(tmp_path / "whole", (), *events).joinpath("events.jsonl").read_text()
    for at in range(0, len(text), 53):  # split anywhere, also within a line
        with path.open("a") as file:
            file.write(text[at : at + 53])
        time.sleep(0.01)
    follower.join(timeout=5)
    assert seen == ["round", "lost", "done"]


def run_chaos(monkeypatch: pytest.MonkeyPatch, folder: Path, *kills: str) -> tuple[int, list[tuple[int, int]]]:
    """The exit code, and (pid, signal) of each kill."""
    kills_seen: list[tuple[int, int]] = []
    monkeypatch.setattr(processes, "PROC", folder / "proc")
    monkeypatch.setattr(chaos, "_INTO_ROUND_S", 0)
    monkeypatch.setattr(os, "kill", lambda pid, number: kills_seen.append((pid, number)))
    monkeypatch.setattr(
        sys, "argv", ["chaos", str(folder), *(word for kill in kills for word in ("--kill", kill))]
    )
    return chaos.main(), kills_seen


def test_chaos_kills_after_its_rounds_and_says_if_it_could_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_records(tmp_path, ("anna",), over(1), over(2), RunDone(text="", folder="run"))
    add_process(tmp_path / "proc", 10, PYTHON, FEDNC, "server")
    add_process(tmp_path / "proc", 11, PYTHON, FEDNC, "client", "--name", "anna")
    assert run_chaos(monkeypatch, tmp_path, "anna@1", "server@2") == (
        0,
        [(11, signal.SIGKILL), (10, signal.SIGKILL)],
    )
    assert run_chaos(monkeypatch, tmp_path, "anna@3") == (1, [])


# ---- health ------------------------------------------------------------------------------------------------


@pytest.fixture
def healthy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("healthy", ROOT / "deploy" / "healthy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_server_is_healthy_while_it_answers(healthy: ModuleType, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def answers_while_serving() -> bool:
        async with serving(tmp_path, {"health_port": port}):
            return bool(await asyncio.to_thread(healthy.server_answers, port))

    assert asyncio.run(answers_while_serving())
    assert not healthy.server_answers(port), "it has stopped"


def test_a_client_is_healthy_while_it_is_connected(healthy: ModuleType, tmp_path: Path) -> None:
    line = "   0: 0100007F:A001 0200A8C0:20F8 {} 00000000:00000000 00:00000000 00000000 0 0 1\n"
    table = tmp_path / "tcp"
    for state, well in (("01", True), ("0A", False), ("02", False)):
        table.write_text("  sl  local_address rem_address   st\n" + line.format(state))
        assert healthy.client_is_connected((table, tmp_path / "none")) is well
