"""How much accuracy one hostile node of four costs, and two of ten, beside the same run without them.

Real training on scikit-learn's digits with the shipped app and strategy; only the content of replies is hostile.
The comparison is always with the run without the hostile nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from sklearn.datasets import load_digits

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.common.errors import QuorumError
from fednc.common.tasks.metric_info import ACCURACY
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, NodeEvent
from support.heard_events import of_kind
from support.hostile import apps as hostile

CLASSES = [str(digit) for digit in range(10)]
HUGE = 2**32


@dataclass
class Outcome:
    accuracy: float
    pooled: dict[str, float]
    named: set[str]  # in events about what a node did
    rejected: set[str]  # nodes that got a strike


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tenth of the training images for each of ten clients, the same with labels flipped, and a test set."""
    root = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    images, labels = (digits.images * 15.9).astype(np.uint8), digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    parts = np.array_split(order[:1400], 10)
    for number, part in enumerate(parts):
        x, y = images[part], labels[part]
        np.savez(root / f"c{number}.npz", x_train=x, y_train=y, classes=CLASSES)
        np.savez(root / f"c{number}-flipped.npz", x_train=x, y_train=9 - y, classes=CLASSES)
    held = order[1400:]
    np.savez(
        root / "test.npz",
        x_train=images[held],
        y_train=labels[held],
        x_test=images[held],
        y_test=labels[held],
        classes=CLASSES,
    )
    return root


def carry_out(
    folder: Path,
    method: str,
    names: list[str],
    seed: int,
    lies: dict[str, hostile.Lie],
    flipped: set[str],
    **rounds: Any,
) -> Outcome:
    run = parse_run(
        {
            "seed": seed,
            "task": {
                "name": "image",
                "classes": CLASSES,
                "size": 8,
                "channels": 1,
                "mean": [0.3],
                "std": [0.38],
                "width": 8,
            },
            "frame": {"dim": 32},
            "method": {"name": method},
            "train": {"batch": 16, "lr": 0.1},
            "rounds": {"total": 20, "min_clients": 2, "evaluate_every": 0, **rounds},
            "evaluate": {"test": f"npz:{folder / 'test.npz'}"},
        }
    )
    events: list[Event] = []
    log = EventLog()
    log.listen(events.append)
    clients = [
        ClientConfig(name=name, data=f"npz:{folder / name}{'-flipped' * (name in flipped)}.npz", device="cpu")
        for name in names
    ]
    rejected: set[str] = set()
    prepared = FederatedRun(run, log)
    with LocalGrid(run, clients, hostile.app_with(lies)) as grid:
        around = Surroundings(name_of=grid.name_of, reject=lambda node, _why: rejected.add(grid.name_of(node)))
        result = prepared.execute(grid, around)
    last = result.history.rounds[-1]
    accuracy = last.value_of(ACCURACY)
    assert accuracy is not None
    return Outcome(accuracy, last.pooled, {event.node for event in of_kind(NodeEvent, events)}, rejected)


@cache
def without(folder: Path, method: str, count: int, seed: int, robust: str = "none") -> float:
    names = [f"c{number}" for number in range(count)]
    return carry_out(folder, method, names, seed, {}, set(), robust=robust).accuracy


# ---- one of four, default settings -------------------------------------------------------------------------

ONE = {
    "claims 2^32, sends the opposite": hostile.all_of(hostile.claims(HUGE), hostile.scaled(-1)),
    "claims 2^20, sends noise": hostile.all_of(hostile.claims(2**20), hostile.noise(1)),
    "announces what it has, replies 2^32": hostile.all_of(hostile.replies_with(HUGE), hostile.scaled(-1)),
    "all weights 3": hostile.constant(3.0),
    "all weights 60000": hostile.constant(60000.0),
    "a thousand times its update": hostile.scaled(1000),
    "sums of 2^28 examples per class": hostile.wrong_memory(2**28),
    "claims 2^30 and sums of 2^26 per class": hostile.all_of(hostile.claims(2**30), hostile.wrong_memory(2**26)),
    "statistics of 2^53 examples": hostile.wrong_statistics(2**53),
    "perfect statistics of 2^32 examples": hostile.all_of(hostile.claims(HUGE), hostile.perfect(HUGE)),
}


@pytest.mark.parametrize("method", ["fedavg", "fednc"])
@pytest.mark.parametrize("lie", ONE, ids=lambda lie: lie.replace(" ", "-"))
def test_one_of_four_costs_at_most_a_point(folder: Path, method: str, lie: str) -> None:
    attacked = carry_out(folder, method, ["c0", "c1", "c2", "c3"], 1, {"c3": ONE[lie]}, set())
    assert attacked.accuracy >= without(folder, method, 3, 1) - 0.01
    assert attacked.rejected <= {"c3"}, "an honest node was counted against"
    if method == "fednc" or "sums" not in lie:  # fedavg asks for no sums
        assert "c3" in attacked.named
    assert all(0 <= value <= 1 for name, value in attacked.pooled.items() if name.startswith("accuracy"))


def test_without_other_answers_a_claim_that_does_not_count_gives_no_model(folder: Path) -> None:
    def fails(_message: Message, reply: Message) -> None:
        if "model" in reply.content:
            raise RuntimeError("an honest client that breaks down")

    lies = {"c0": hostile.claims(HUGE), **dict.fromkeys(("c1", "c2"), fails)}
    with pytest.raises(QuorumError, match="round 1"):
        carry_out(folder, "fedavg", ["c0", "c1", "c2"], 1, lies, set(), min_clients=1)


# ---- two of ten, the robust option -------------------------------------------------------------------------

TWO = {
    "sign flip": hostile.scaled(-1),
    "scaled": hostile.scaled(10),
    "scaled the other way": hostile.scaled(-10),
    "label flip": None,
}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("attack", TWO, ids=lambda attack: attack.replace(" ", "-"))
@pytest.mark.parametrize("method", ["fedavg", "fednc"])
def test_two_of_ten_cost_at_most_three_points_when_trimmed(
    folder: Path, method: str, attack: str, seed: int
) -> None:
    names, lie = [f"c{number}" for number in range(10)], TWO[attack]
    two = {"c8", "c9"}
    lies = dict.fromkeys(two, lie) if lie else {}
    attacked = carry_out(folder, method, names, seed, lies, set() if lie else two, robust="trim")
    alone = without(folder, method, 8, seed, "trim")
    print(f"{method} {attack} seed {seed}: {alone:.3f} without them, {attacked.accuracy - alone:+.3f}")
    assert attacked.accuracy >= alone - 0.03
    assert attacked.rejected == set()
