"""Made-up traces of a stack of containers: processes in /proc, records of a run."""

from __future__ import annotations

import json
from pathlib import Path

from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, RoundCompleted
from fednc.server.storage.history import RoundRecord

PYTHON, FEDNC = "/opt/fednc/bin/python", "/opt/fednc/bin/fednc"


def add_process(
    proc: Path, pid: int, *arguments: str, uid: int = 10001, caps: int = 0, safe: int = 1, spaces: str = "7 1"
) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes(b"".join(argument.encode() + b"\0" for argument in arguments))
    lines = [f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}", f"CapEff:\t{caps:016x}", f"NoNewPrivs:\t{safe}"]
    (folder / "status").write_text("\n".join([*lines, f"NSpid:\t{spaces}"]))


def write_records(folder: Path, names: tuple[str, ...], *events: Event) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({"clients": [{"name": n, "examples": 1} for n in names]}))
    (folder / "events.jsonl").unlink(missing_ok=True)
    log = EventLog(folder / "events.jsonl")
    for event in events:
        log.emit(event)
    log.close()
    return folder


def over(number: int, replies: int = 2) -> RoundCompleted:
    return RoundCompleted(text="", record=RoundRecord(round=number, replies=replies))
