"""Small finished runs to register, and what happens to a process that is killed while it does so."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import fednc
from fednc.common import fault_injection


def clients_data(folder: Path, name: str, labels: Sequence[str], seed: int) -> str:
    """Data spec of a client whose labels 0, 1, 2 have these names."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 60)
    x = (rng.random((60, 8, 8)) * 40 + y[:, None, None] * 80).astype(np.uint8)
    path = folder / f"{name}-{seed}-{''.join(labels)}.npz"
    np.savez(path, x_train=x, y_train=y, classes=np.array(list(labels)))
    return f"npz:{path}"


def finished_run(folder: Path, name: str, labels: Sequence[str] = "abc", seed: int = 0) -> Path:
    """A run of two clients; the labels of the second are named as given."""
    folder.mkdir(exist_ok=True)
    config = {
        "name": "toy",
        "seed": seed,
        "task": {"name": "image", "classes": ["a", "b", "c"], "size": 8, "channels": 1},
        "rounds": {"total": 1, "min_clients": 2},
        "frame": {"dim": 8},
    }
    data = {"anna": clients_data(folder, "anna", "abc", 1), "bert": clients_data(folder, "bert", labels, 2)}
    fednc.run(config, data, folder=folder / name, progress=False, device="cpu")
    return folder / name


def killed_at(plan: str, work: Callable[[], object]) -> bool:
    """Do `work` in a copy of this process with a plan of faults; whether it was killed."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            fault_injection.arm({"FEDNC_FAULT": plan, "FEDNC_TESTING": "1"} if plan else {})
            work()
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            code = 1
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
