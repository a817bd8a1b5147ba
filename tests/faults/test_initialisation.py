"""Killing a server or client during the initialisation does not change the final model."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from support.process_federation import NAMES, Stage

RUN = """
name = "initialisation"
seed = 3
[task]
name = "image"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
model = "plain"
width = 8
size = 8
channels = 1
[frame]
dim = 16
[method]
name = "fedavg"
[init]
kind = "{kind}"
iters = 6
lr = 0.2
min_rise = 0.0
[train]
batch = 50
lr = 0.01
[rounds]
total = 2
min_clients = 2
rejoin_s = 30
evaluate_every = 0
[server]
auth = "none"
"""
# Replies of two clients, in the server's order: 2 in the report before; with `nio-exact` 2 directions and 2
# slopes in each iteration, with `nio` 2 once; 2 in the report after.
SERVER_LIVES = {
    "nio-exact": (1, 3, 5, 8, 2 + 6 * 4, 2 + 6 * 4 + 1),
    "nio": (1, 3, 4, 5),
}
# Batches that one client draws: 1 for each report; with `nio-exact` 2 in each iteration, with `nio` 1.
CLIENT_LIVES = {"nio-exact": (1, 1, 2), "nio": (1, 3)}


def without_clocks(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("at", "elapsed_s", "seconds")}


@pytest.mark.parametrize("kind", ["nio-exact", "nio"])
def test_a_kill_during_the_initialisation(kind: str, stage: Callable[..., Stage]) -> None:
    run = stage()
    (run.folder / "run.toml").write_text(RUN.format(kind=kind))
    processes = [run.server(), *map(run.client, NAMES)]
    assert [process.wait() for process in processes] == [0, 0, 0], run.log("server")
    undisturbed, (told,) = run.digest(), run.events("init")
    assert told["used"]
    run.run.rename(run.folder / "undisturbed")

    other = run.client(NAMES[1])
    first = run.client(NAMES[0])
    for reply in SERVER_LIVES[kind]:
        assert run.server(f"server.initialise:{reply}:kill").wait() == -signal.SIGKILL, run.log("server")
    first.send(signal.SIGKILL)
    server = run.server()
    for batch in CLIENT_LIVES[kind]:
        fault = f"client.initialise:{batch}:kill"
        assert run.client(NAMES[0], fault).wait() == -signal.SIGKILL, run.log(NAMES[0])
    last = run.client(NAMES[0])
    assert [process.wait() for process in (server, other, last)] == [0, 0, 0], run.log("server")
    killed = ["server.initialise:kill"] * len(SERVER_LIVES[kind]) + ["client.initialise:kill"] * len(
        CLIENT_LIVES[kind]
    )
    assert run.faults() == killed
    assert run.digest() == undisturbed
    (again,) = run.events("init")
    assert without_clocks(again) == without_clocks(told)
