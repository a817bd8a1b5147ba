"""The fault points, where tests break things: each is in the code once and works only in tests."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fednc.common import fault_injection
from fednc.common.errors import ConfigError
from fednc.common.files import write_atomically

ROOT = Path(__file__).parents[2]
CODE = [
    path
    for floor in ("bench", "cli", "client", "common", "ops", "server", "tasks")
    for path in (ROOT / floor).rglob("*.py")
]


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    fault_injection.arm({})


def arm(plan: str, log: Path | None = None) -> None:
    fault_injection.arm({"FEDNC_FAULT": plan, "FEDNC_TESTING": "1", "FEDNC_FAULT_LOG": str(log or "")})


def test_every_point_is_in_the_code_exactly_once() -> None:
    call = re.compile(r"(?:fault_injection\.(?:at|through|through_all)\(\s*|\bpoint=)\"([^\"]+)\"")
    found = Counter(point for path in CODE for point in call.findall(path.read_text(encoding="utf-8")))
    assert found == Counter(dict.fromkeys(fault_injection.POINTS, 1))


@pytest.mark.parametrize("environment", [{}, {"FEDNC_TESTING": "0"}])
def test_a_plan_is_refused_outside_tests(environment: dict[str, str]) -> None:
    env = {**os.environ, "FEDNC_FAULT": "file.half:1:kill", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "fednc.cli.main", "init"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "FEDNC_FAULT is set" in done.stderr


@pytest.mark.parametrize("plan", ["nowhere:1:kill", "file.half:x:kill", "file.half:1:explode", "file.half", ":::"])
def test_an_invalid_plan_is_refused(plan: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"FEDNC_FAULT={plan}")):
        arm(plan)


def test_nothing_happens_without_a_plan_or_at_another_count(tmp_path: Path) -> None:
    fault_injection.at("file.half")
    assert fault_injection.through("client.upload", b"abc") == b"abc"
    arm("server.fold:2:raise", tmp_path / "log")
    fault_injection.at("server.attend")
    fault_injection.at("server.fold")
    with pytest.raises(fault_injection.InjectedError):
        fault_injection.at("server.fold")
    fault_injection.at("server.fold")
    assert (tmp_path / "log").read_text() == f"{os.getpid()} server.fold 2 raise\n"


def test_actions_do_what_they_say() -> None:
    arm("server.fold:1:memory,server.fold:2:enospc,server.fold:*:delay_ms=50")
    started = time.monotonic()
    with pytest.raises(MemoryError):
        fault_injection.at("server.fold")
    with pytest.raises(OSError, match="No space left") as full:
        fault_injection.at("server.fold")
    assert full.value.errno == errno.ENOSPC
    fault_injection.at("server.fold")
    assert time.monotonic() - started > 0.05
    arm("client.upload:1:corrupt,client.upload:2:truncate,client.upload:3:duplicate,client.upload:4:enospc")
    data = memoryview(b"abcd")
    spoiled = [fault_injection.through("client.upload", data) for _ in range(3)]
    assert spoiled == [b"`bcd", b"ab", b"abcdabcd"]
    with pytest.raises(OSError, match="No space left"):
        fault_injection.through("client.upload", data)
    assert fault_injection.through("client.upload", data) is data


def test_a_disk_that_fills_up_in_the_middle_of_a_file_leaves_the_old_one(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"old")
    arm("file.half:1:enospc")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new and longer")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]
