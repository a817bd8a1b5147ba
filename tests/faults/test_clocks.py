"""A system clock that is ten minutes wrong, for every library in the process, gRPC's core included."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import Reference
from stage import NAMES, Process, Stage, Zygote, environment

from fednc.common.authority import Authority
from fednc.common.credentials import Holder, Role

YEAR = timedelta(days=365)
# Libfaketime can put a client's clock back. Put ahead, gRPC's core waits in futexes until a time of day that comes
# ten minutes too late; in the server, `time.sleep` fails (an absolute wait on the clock that is not faked). Both
# are its own faults: tests/faults/test_links.py has clocks that are ahead, as Python sees them.
WRONG_S = {NAMES[0]: -600, NAMES[1]: 0}
SLOWLY_S = 270.0  # waits until a time of day that is past end at once: gRPC spins, and trains on what is left
FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")


class WrongClocks(Zygote):
    """Starts processes as users do, under libfaketime.

    Only the wall clock is wrong: a monotonic clock counts from the machine's start and is never set.
    """

    def __init__(self, library: Path) -> None:
        self._library = library

    def start(self, args: list[str], env: dict[str, str], log: Path, skew_s: float) -> Process:
        if skew_s:
            env = env | {
                "LD_PRELOAD": str(self._library), "FAKETIME": f"{skew_s:+g}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }  # fmt: skip
        command = [sys.executable, "-m", "fednc.cli.main", *args]
        process = subprocess.Popen(
            command, env=environment(**env), stdout=log.open("wb"), stderr=subprocess.STDOUT
        )
        return Process(process.pid, process.poll)


@pytest.fixture(scope="module")
def library() -> Path:
    found = [path for folder in FOLDERS for path in Path(folder).glob("**/faketime/libfaketime.so.1")]
    if not found:
        pytest.skip("libfaketime is not installed (Debian: apt-get install faketime)")
    return found[0]


def test_a_client_whose_system_clock_is_ten_minutes_behind(
    data: Path, tmp_path: Path, reference: Reference, library: Path
) -> None:
    authority = Authority.create(tmp_path / "ca", "faults")
    authority.issue_server(["127.0.0.1"], YEAR)
    for name in NAMES:
        authority.issue_certificate(Holder(Role.NODE, name), YEAR)
    run = Stage(WrongClocks(library), tmp_path, data, certs=tmp_path / "ca")
    try:
        server = run.server()
        clients = [run.client(name, skew_s=WRONG_S[name]) for name in NAMES]
        assert [process.wait(SLOWLY_S) for process in (server, *clients)] == [0, 0, 0], run.log("server")
    finally:
        run.end()
    ready = {event["node"]: event for event in run.events("ready")}
    assert set(ready) == set(NAMES)
    hours = {name: run.log(name)[:8] for name in NAMES}  # of each log's first line
    assert _seconds(hours[NAMES[1]], hours[NAMES[0]]) > 500, f"the clock was not wrong: {hours}"
    assert run.digest() == reference.digest


def _seconds(later: str, earlier: str) -> int:
    """Between two times of day."""
    times = [sum(int(n) * 60**i for i, n in enumerate(reversed(each.split(":")))) for each in (later, earlier)]
    return (times[0] - times[1]) % 86400
