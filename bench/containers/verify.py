"""Check a federation in containers from outside: `python -m fednc.bench.containers.verify RUN.toml FOLDER ...`.

The `verify` service of docker-compose.yml runs it. Prints each check; the exit code is 0 only if all of them pass.
Checks processes, access and the files of the run, without any credential.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fednc.bench.containers import run_records, unauthorised_access
from fednc.bench.containers.processes import Process, await_node
from fednc.common.config.run import RunConfig, read_run_file
from fednc.common.errors import FedncError
from fednc.common.waiting import Deadline

DOOR_TRIED = Path(tempfile.gettempdir()) / "door-tried"  # the healthcheck that lets the last client start


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What to check."""

    run: RunConfig
    folder: Path
    server: str
    clients: tuple[str, ...]
    data: str  # of the reference run in one process; empty: none
    lost: str  # NAME@N: this client was killed in the round after the N-th
    resumed: int  # the server was killed in the round after this one; 0: it was not
    deadline: Deadline  # for the run to end


def check_all(expected: Expected, report: Callable[[str], None]) -> bool:
    """Make every check and report it. Returns whether all of them pass."""
    fine = [_check(title, check, report) for title, check in _door_checks(expected.server).items()]
    DOOR_TRIED.touch()
    fine += [_check(title, check, report) for title, check in _run_checks(expected).items()]
    report(f"{sum(fine)} of {len(fine)} checks hold")
    return all(fine)


def titles(clients: Sequence[str], *, lost: str = "", resumed: int = 0) -> set[str]:
    """The names of the checks for these clients."""
    expected = Expected(
        run=RunConfig(),
        folder=Path(),
        server="",
        clients=tuple(clients),
        data="any",
        lost=lost,
        resumed=resumed,
        deadline=Deadline(0),
    )
    return {*_door_checks(""), *_run_checks(expected)}


def _check(title: str, check: Callable[[], str], report: Callable[[str], None]) -> bool:
    try:
        report(f"ok      {title}: {check()}")
    except (LookupError, OSError, ValueError, FedncError) as e:
        report(f"FAILED  {title}: {e}")
        return False
    return True


def _door_checks(server: str) -> dict[str, Callable[[], str]]:
    return {
        "plaintext is refused": lambda: unauthorised_access.knock_in_plaintext(server),
        "a connection without a certificate is refused": lambda: unauthorised_access.knock_without_certificate(
            server
        ),
        "a certificate from another authority is refused": lambda: unauthorised_access.knock_with_foreign_one(
            server
        ),
    }


def _run_checks(expected: Expected) -> dict[str, Callable[[], str]]:
    folder, names = expected.folder, expected.clients
    checks: dict[str, Callable[[], str]] = {
        f"{name} is not root": lambda name=name: confined(await_node(name, expected.deadline))  # type: ignore[misc]
        for name in ("server", *names)
    }
    checks["the records name the clients"] = lambda: run_records.check_names(folder, names, expected.deadline)
    if expected.lost:
        name, _, after = expected.lost.partition("@")
        checks["a client was killed in mid-round"] = lambda: run_records.check_lost(folder, name, int(after))
    if expected.resumed:
        checks["the server was killed in mid-round"] = lambda: run_records.check_resumed(folder, expected.resumed)
    if expected.data:
        checks["the model is the one of an in-process run"] = lambda: run_records.check_model(
            folder, expected.run, names, expected.data
        )
    return checks


def confined(process: Process) -> str:
    """A process has no privilege. Raises ValueError if it has any."""
    if 0 in process.uids or process.capabilities or process.may_gain:
        raise ValueError(
            f"process {process.pid} has user ids {sorted(process.uids)}, capabilities {process.capabilities:#x}, "
            f"and {'may' if process.may_gain else 'may not'} gain more; see user, cap_drop, security_opt"
        )
    return f"user {max(process.uids)}, no capability, no way to gain any"


def main() -> int:
    """Check what the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_file", type=Path)
    parser.add_argument("folder", type=Path, help="folder of the run; it may not exist yet")
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument(
        "--clients", required=True, metavar="A,B,...", help="names; client I has part I of the split"
    )
    parser.add_argument(
        "--data", default="", metavar="SPEC", help="data of the clients; without it the model is not checked"
    )
    parser.add_argument(
        "--lost", default="", metavar="NAME@N", help="client that was killed in the round after round N"
    )
    parser.add_argument(
        "--resumed", default=0, type=int, metavar="N", help="the server was killed in the round after round N"
    )
    parser.add_argument("--patience-s", default=300.0, type=float, help="seconds for the run to end")
    args = parser.parse_args()
    expected = Expected(
        run=read_run_file(args.run_file),
        folder=args.folder,
        server=args.server,
        clients=tuple(args.clients.split(",")),
        data=args.data,
        lost=args.lost,
        resumed=args.resumed,
        deadline=Deadline(args.patience_s),
    )
    return 0 if check_all(expected, _say) else 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
