"""Kill processes of containers in mid-round: `python -m fednc.bench.containers.chaos FOLDER --kill NAME@N`.

Follows the server's events and sends SIGKILL shortly after round N, when the next round is running. Used by
deploy/compose.chaos.yml; `verify.py` checks that the server noticed.
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
from fednc.common.waiting import Deadline, wait_until
from fednc.server.storage.events import Event, RoundCompleted, RunDone, event_of

_POLL_S = 0.02
_INTO_ROUND_S = 0.4  # clients are training by then; no round is shorter


def follow(path: Path) -> Iterator[Event]:
    """Events of a run from the first to the last, as they are written; also before the file is there."""
    wait_until(path.exists, Deadline(), _POLL_S)
    rest = ""
    with path.open(encoding="utf-8") as file:
        while True:
            rest += wait_until(file.read, Deadline(), _POLL_S)
            *lines, rest = rest.split("\n")
            for line in lines:
                event = event_of(json.loads(line))
                if event:
                    yield event
                if isinstance(event, RunDone):
                    return


def strike(name: str) -> None:
    """SIGKILL to the server's or a client's container. Raises LookupError when there is none."""
    process = processes.await_node(name, Deadline(0))
    os.kill(process.pid, signal.SIGKILL)


def main() -> int:
    """Kill as the command line says. Exit code 1 if the run ended before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the run")
    parser.add_argument(
        "--kill", action="append", required=True, metavar="NAME@N", help="node to kill, and the round after which"
    )
    args = parser.parse_args()
    plan = {int(after): name for name, _, after in (text.partition("@") for text in args.kill)}
    for event in follow(args.folder / "events.jsonl"):
        if isinstance(event, RoundCompleted) and event.record.round in plan:
            name = plan.pop(event.record.round)
            time.sleep(_INTO_ROUND_S)
            strike(name)
            sys.stdout.write(f"killed {name} in round {event.record.round + 1}\n")
    for after, name in plan.items():
        sys.stdout.write(f"FAILED: the run ended before round {after}, after which {name} was to be killed\n")
    return 1 if plan else 0


if __name__ == "__main__":
    sys.exit(main())
