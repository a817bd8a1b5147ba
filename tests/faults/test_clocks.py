"""System clocks that are ten minutes wrong, ahead or behind, for a whole process, gRPC's core included.

wrong_clock.c shifts the clock. libfaketime would not do: it does not shift gRPC's waits, which then end ten
minutes late, and it breaks Python's. Without a C compiler, only test_links.py tests wrong clocks.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import Reference

from fednc.common.security.authority import Authority
from fednc.common.security.credentials import Holder, Role
from support.process_federation import NAMES, Process, Stage, Zygote, environment

YEAR = timedelta(days=365)
WRONG_S = 600
SOURCE = Path(__file__).with_name("wrong_clock.c")


class WrongClocks(Zygote):
    """Starts processes as users do, each with its own clock."""

    def __init__(self, library: Path) -> None:
        self._library = library

    def start(self, args: list[str], env: dict[str, str], log: Path, skew_s: float) -> Process:
        env = env | {"LD_PRELOAD": str(self._library), "WRONG_CLOCK_S": f"{skew_s:.0f}"}
        command = [sys.executable, "-m", "fednc.cli.main", *args]
        process = subprocess.Popen(
            command, env=environment(**env), stdout=log.open("wb"), stderr=subprocess.STDOUT
        )
        return Process(process.pid, process.poll)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    made = tmp_path_factory.mktemp("clock") / "wrong_clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, SOURCE, "-ldl", "-lpthread"], check=True)
    return made


def test_the_clock_is_wrong_but_waits_are_right(library: Path) -> None:
    program = (
        "import queue, threading, time\n"
        "began = time.monotonic(); time.sleep(0.1); threading.Event().wait(0.1)\n"
        "try: queue.Queue().get(timeout=0.1)\n"
        "except queue.Empty: pass\n"
        "print(time.time(), time.monotonic() - began)\n"
    )
    for wrong_s in (WRONG_S, -WRONG_S):
        env = environment(LD_PRELOAD=str(library), WRONG_CLOCK_S=str(wrong_s))
        out = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        now_s, waited_s = map(float, out.stdout.split())
        assert abs(now_s - time.time() - wrong_s) < 60
        assert 0.3 <= waited_s < 10


@pytest.mark.parametrize("server_s", [WRONG_S, -WRONG_S], ids=["server-ahead", "server-behind"])
def test_a_server_and_a_client_whose_clocks_are_wrong_in_opposite_directions(
    data: Path, tmp_path: Path, reference: Reference, library: Path, server_s: int
) -> None:
    authority = Authority.create(tmp_path / "ca", "faults")
    authority.issue_server(["127.0.0.1"], YEAR)
    for name in NAMES:
        authority.issue_certificate(Holder(Role.NODE, name), YEAR)
    run = Stage(WrongClocks(library), tmp_path, data, certs=tmp_path / "ca")
    true_s = time.time()
    try:
        server = run.server(skew_s=server_s)
        clients = [run.client(NAMES[0], skew_s=-server_s), run.client(NAMES[1])]
        assert [process.wait() for process in (server, *clients)] == [0, 0, 0], run.log("server")
    finally:
        run.end()
    began = run.events("listening")[0]["at"] - true_s
    assert -100 < began - server_s < 100, "the server's clock was not wrong"
    hours = [run.log(name)[:8] for name in NAMES]  # of each client's first line
    assert abs(_seconds(*hours) + server_s) < 100, f"the client's clock was not wrong: {hours}"
    assert not run.events("lost")
    assert run.digest() == reference.digest


def _seconds(later: str, earlier: str) -> int:
    """The difference between two times of day, the shorter way round midnight."""
    times = [sum(int(n) * 60**i for i, n in enumerate(reversed(each.split(":")))) for each in (later, earlier)]
    return (times[0] - times[1] + 43200) % 86400 - 43200
