"""`fednc` as users start it: real processes with their own command line, environment and streams."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN_FILE = """
name = "ops"
[task]
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
size = 8
channels = 1
width = 8
[frame]
dim = 16
[rounds]
total = {total}
wait_s = {wait_s}
[split]
parts = 2
[server]
listen = "127.0.0.1:0"
stop_s = 2
"""


def write_run(folder: Path, *, total: int = 2, wait_s: float = 60, more: str = "") -> Path:
    path = folder / "run.toml"
    path.write_text(RUN_FILE.format(total=total, wait_s=wait_s) + more)
    return path


def fednc(
    *arguments: object, cwd: Path, env: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start `fednc`; stdout and stderr are pipes unless `options` says otherwise."""
    command = [sys.executable, "-m", "fednc.cli.start", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(command, cwd=cwd, env=environment, **streams)


def ends(process: subprocess.Popen[str], timeout_s: float = 60) -> tuple[int, str]:
    """Its exit code and output; it is killed if it does not end."""
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, (out or "") + (err or "")


def wait_for(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    """The first truthy value of `condition()`."""
    give_up = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < give_up, f"the condition was not met within {timeout_s} s"
        time.sleep(0.02)
    return value


def port_of(folder: Path) -> int:
    """The port of the server whose run folder is `folder`, once it listens."""
    import json

    def found() -> int:
        path = folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        ports = [event["port"] for line in lines if (event := json.loads(line))["kind"] == "listening"]
        return ports[-1] if ports else 0

    return int(wait_for(found))
