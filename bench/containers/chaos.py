"""Kill processes of containers in mid-round: `python -m fednc.bench.containers.chaos FOLDER --kill NAME@N`.

Follows the server's events and strikes with SIGKILL shortly after the N-th round, when the next one is under way.
Run by deploy/compose.chaos.yml; `verify.py` checks that it was felt.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fednc.bench.containers import processes
from fednc.server.storage.events import Event, RoundCompleted, RunDone, event_of

_POLL_S = 0.02
_INTO_ROUND_S = 0.4  # clients train by then, and no round is that short


def follow(path: Path) -> Iterator[Event]:
    """Events of a run from the first to the last, as they are written; also before the file is there."""
    while not path.exists():
        time.sleep(_POLL_S)
    rest = ""
    with path.open(encoding="utf-8") as file:
        while True:
            rest += file.read() or _pause()
            *lines, rest = rest.split("\n")
            for line in lines:
                event = event_of(json.loads(line))
                if event:
                    yield event
                if isinstance(event, RunDone):
                    return


def _pause() -> str:
    time.sleep(_POLL_S)
    return ""


def strike(name: str) -> None:
    """SIGKILL to the server's or a client's container. Raises LookupError when there is none."""
    process = processes.await_node(name, time.monotonic())
    os.kill(process.pid, signal.SIGKILL)


def main() -> int:
    """Strike as asked; 1 when the run was over first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the run")
    parser.add_argument("--kill", action="append", required=True, metavar="NAME@N", help="whom, after which round")
    args = parser.parse_args()
    plan = {int(after): name for name, _, after in (text.partition("@") for text in args.kill)}
    for event in follow(args.folder / "events.jsonl"):
        if isinstance(event, RoundCompleted) and event.record.round in plan:
            name = plan.pop(event.record.round)
            time.sleep(_INTO_ROUND_S)
            strike(name)
            sys.stdout.write(f"killed {name} in round {event.record.round + 1}\n")
    for after, name in plan.items():
        sys.stdout.write(f"FAILED: {name} was to be killed after round {after}, which never came\n")
    return 1 if plan else 0


if __name__ == "__main__":
    sys.exit(main())
