"""A server that is killed within and between sessions and restarted gives the model of an undisturbed run."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from support.process_federation import NAMES, Process, Stage

SESSIONS = """
name = "sessions"
seed = 3
[task]
name = "fewshot"
classes = ["0", "1", "2", "3", "4", "5"]
norm = "batch"
width = 8
size = 8
channels = 1
[frame]
dim = 16
vertices = 12
[method]
loss = "dot"
readout = "vertex"
anchor = 0.0
[train]
batch = 50
lr = 0.1
[rounds]
total = 2
min_clients = 2
rejoin_s = 30
evaluate_every = 0
[[sessions]]
classes = ["6", "7"]
shots = 5
rounds = 2
epochs = 3
min_clients = 2
[[sessions]]
classes = ["8", "9"]
shots = 5
rounds = 2
epochs = 3
min_clients = 2
[server]
auth = "none"
"""
# After each start the server writes one checkpoint after a round, and one when a session opens.
LIVES = (
    "server.checkpoint.end:2:kill",  # after the last round of the base, so between sessions
    "server.checkpoint.begin:1:kill",  # session 1 is open and its memory pooled, but nothing is written yet
    "server.checkpoint.end:1:kill",  # the checkpoint says that session 1 is open
    "server.fold:2:kill",  # within round 3, the first of session 1
    "server.checkpoint.end:2:kill",  # after the last round of session 1
    "server.checkpoint.tensors:1:kill",  # half of the checkpoint that says that session 2 is open
    "server.checkpoint.end:2:kill",  # after the first round of session 2
)


def write_data(folder: Path) -> None:
    """Digits of every class for both clients."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    image_NHW = (digits.images * 15.9).astype(np.uint8)
    for index, name in enumerate(NAMES):
        mine = slice(300 * index, 300 * index + 300)
        np.savez(folder / f"{name}.npz", x_train=image_NHW[mine], y_train=digits.target[mine])


def test_a_server_that_is_killed_within_and_between_sessions(stage: Callable[..., Stage], tmp_path: Path) -> None:
    write_data(tmp_path)
    run = stage()
    run.data = tmp_path
    (run.folder / "run.toml").write_text(SESSIONS)
    assert ends(run, [run.server(), *map(run.client, NAMES)]) == [0, 0, 0], run.log("server")
    undisturbed, told = run.digest(), run.rounds()
    run.run.rename(run.folder / "undisturbed")

    clients = [run.client(name) for name in NAMES]
    for fault in LIVES:
        assert run.server(fault).wait() == -signal.SIGKILL, run.log("server")
    assert ends(run, [run.server(), *clients]) == [0, 0, 0], run.log("server")
    assert run.digest() == undisturbed
    figures = ("round", "session", "loss", "pooled", "memory_cosines")
    assert [[r[f] for f in figures] for r in run.rounds()] == [[r[f] for f in figures] for r in told]
    assert [r["session"] for r in told] == [None, 0, None, 1, None, 2]


def ends(run: Stage, processes: list[Process]) -> list[int]:
    """The exit codes."""
    del run
    return [process.wait() for process in processes]
