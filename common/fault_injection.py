"""Named points at which tests inject faults: `FEDNC_FAULT=point:n:action[,...]`, refused outside tests.

Called at critical points of server and client. Without a plan this costs one comparison. Knows nothing about the
code that it interrupts. `n` counts how often this process has reached the point, from 1; `*` means every time.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fednc.common.errors import ConfigError

PLAN, ALLOWED, LOG = "FEDNC_FAULT", "FEDNC_TESTING", "FEDNC_FAULT_LOG"

POINTS = {
    "file.half": "half of a file that is written atomically is on the disk",
    "compare.archived": "the archive of a comparison is written, the files of its runs still exist",
    "server.data": "the server's test data is about to be read",
    "server.attend": "a client asks to join",
    "server.download": "the next chunk goes to a client",
    "server.upload": "the next chunk of an upload has arrived",
    "server.committed": "an upload is complete, but neither aggregated nor acknowledged",
    "server.fold": "a reply is about to be aggregated",
    "server.initialise": "an answer to a question before round 1 is about to be used",
    "server.data_sums": "an answer with sums of the data is about to be used",
    "server.probe": "an answer with losses of the probe's candidates is about to be used",
    "server.calibrate": "an answer with losses at all temperatures is about to be used",
    "server.personal": "an answer about a client's personal model is about to be used",
    "server.checkpoint.begin": "nothing of the checkpoint is written yet",
    "server.checkpoint.tensors": "the tensors of the checkpoint are written, its manifest is not",
    "server.checkpoint.end": "the checkpoint is complete",
    "pipeline.begin": "a step of a pipeline is recorded as running, and not begun",
    "pipeline.did": "a step of a pipeline is done, its result is not kept",
    "pipeline.kept": "the result of a step is kept, its state is not recorded",
    "pipeline.recorded": "a step of a pipeline is recorded as done",
    "registry.database": "the database of a new store is made, not yet in its place",
    "registry.run": "a version has an MLflow run, which holds nothing yet",
    "registry.files": "the files of a version are in the store, the version is not",
    "registry.observed": "the version of the data is noted, the version of the model is not registered",
    "registry.committed": "a version is registered, its alias is not set",
    "registry.alias": "the history of an alias is written, the alias has not moved",
    "client.data": "the client's data is about to be read",
    "client.download": "the next chunk, or a blob with an assignment, has come from the server",
    "client.work": "an assignment has arrived in full and its work begins",
    "client.initialise": "a batch for the initialisation is about to be drawn",
    "client.reply": "the work is done, the reply is not yet on its way",
    "client.upload": "the next chunk goes to the server",
}


class InjectedError(Exception):
    """Raised by the action `raise`."""


def _fail_on_full_disk(_: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _raise(_: str) -> None:
    raise InjectedError("a fault that a test asked for")


def _run_out_of_memory(_: str) -> None:
    raise MemoryError("a fault that a test asked for")


def _send_myself(number: signal.Signals) -> Callable[[str], None]:
    return lambda _: os.kill(os.getpid(), number)


_ACTS: Mapping[str, Callable[[str], None]] = {
    "kill": _send_myself(signal.SIGKILL),
    "stop": _send_myself(signal.SIGSTOP),
    "raise": _raise,
    "memory": _run_out_of_memory,
    "enospc": _fail_on_full_disk,
    "delay_ms": lambda wanted: time.sleep(int(wanted) / 1000),
}
_SPOILS: Mapping[str, Callable[[bytes], bytes]] = {
    "corrupt": lambda data: bytes([data[0] ^ 1]) + data[1:] if data else data,
    "truncate": lambda data: data[: len(data) // 2],
    "duplicate": lambda data: data + data,
}


@dataclass(frozen=True)
class _Fault:
    point: str
    nth: str
    action: str
    wanted: str  # the text after `=` in the action

    @classmethod
    def parse(cls, text: str) -> _Fault:
        point, nth, action = (*text.split(":"), "", "")[:3]
        action, _, wanted = action.partition("=")
        counts = nth == "*" or nth.isdecimal()
        if point not in POINTS or not counts or (action not in _ACTS and action not in _SPOILS):
            raise ConfigError(
                f"{PLAN}={text}: expected point:n:action with a point of {sorted(POINTS)}, n a number or *, "
                f"an action of {[*_ACTS, *_SPOILS]}"
            )
        return cls(point, nth, action, wanted)


class _Plan:
    def __init__(self, text: str, log: str) -> None:
        self._faults = [_Fault.parse(each) for each in text.split(",")]
        self._log = Path(log) if log else None
        self._lock = threading.Lock()
        self._passes: Counter[str] = Counter()

    def due(self, point: str) -> list[_Fault]:
        with self._lock:
            self._passes[point] += 1
            now = str(self._passes[point])
            due = [fault for fault in self._faults if fault.point == point and fault.nth in ("*", now)]
            if due and self._log:
                with self._log.open("a") as log:  # before it happens: a killed process writes nothing
                    log.writelines(f"{os.getpid()} {point} {now} {fault.action}\n" for fault in due)
            return due


_plan: _Plan | None = None


def arm(environment: Mapping[str, str]) -> None:
    """Read the plan of this process from its environment. Without one, `at` and `through` do nothing.

    Raises:
        ConfigError: there is a plan outside tests (`FEDNC_TESTING` is not 1), or it cannot be parsed.
    """
    global _plan
    text = environment.get(PLAN, "")
    if text and environment.get(ALLOWED) != "1":
        raise ConfigError(f"{PLAN} is set: it breaks this process on purpose, in tests only; unset it")
    _plan = _Plan(text, environment.get(LOG, "")) if text else None


def at(point: str) -> None:
    """Say that this process has reached a point; a planned fault happens here."""
    if _plan is not None:
        for fault in _plan.due(point):
            _ACTS[fault.action](fault.wanted)


def through(point: str, data: bytes | memoryview) -> bytes | memoryview:
    """As `at`, with data that a fault may damage; returns the data. Empty data does not count as a pass."""
    if _plan is None or not data:
        return data
    for fault in _plan.due(point):
        if fault.action in _SPOILS:
            data = _SPOILS[fault.action](bytes(data))
        else:
            _ACTS[fault.action](fault.wanted)
    return data


def through_all(point: str, piece: list[memoryview]) -> list[memoryview]:
    """As `through`, for data in several buffers."""
    return piece if _plan is None else [memoryview(through(point, b"".join(piece)))]
