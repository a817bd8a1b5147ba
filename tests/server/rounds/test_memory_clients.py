"""`rounds.memory_clients`: with few clients in a round, the class memory of its model is of these or of all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.common.learning.frame import unit
from fednc.common.tasks.classifier import classifier
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import MemoryIsOld
from support.heard_events import of_kind

SITES, EACH, CLASSES = 6, 12, ["a", "b", "c", "d", "e", "f", "nobody has it"]


@pytest.fixture
def clients(tmp_path):
    """Each has one class of its own."""
    rng = np.random.default_rng(0)
    found = []
    for site in range(SITES):
        x = rng.integers(0, 256, (EACH, 8, 8), dtype=np.uint8)
        path = tmp_path / f"{site}.npz"
        np.savez(path, x_train=x, y_train=np.full(EACH, site), classes=CLASSES)
        found.append(ClientConfig(name=f"s{site}", data=f"npz:{path}", device="cpu", val_share=0))
    return found


def trained(clients, heard=lambda _: None, **keys):
    """A run of two of the clients in each round; `keys` are of [rounds], but for `epochs`."""
    train = {"epochs": keys.pop("epochs", 1)}
    run = parse_run(
        {
            "seed": 3,
            "task": {"classes": CLASSES, "size": 8, "channels": 1, "width": 8},
            "frame": {"dim": 8},
            "train": train,
            "rounds": {"total": 3, "min_clients": 2, "clients_per_round": 2, "evaluate_every": 3, **keys},
        }
    )
    with LocalGrid(run, clients) as grid:
        log = EventLog()
        log.listen(heard)
        done = FederatedRun(run, log, torch.device("cpu"))
        done.execute(grid, Surroundings(name_of=grid.name_of))
    return done


def test_the_memory_of_all_is_that_of_all_data_under_the_new_model(clients) -> None:
    done = trained(clients, memory_clients="all")
    model = done.task.build_model().eval()
    model.load_state_dict(done.state.model, strict=False)
    for label, client in enumerate(clients):
        batch = next(iter(done.task.load_train(client.data, None, None).eval_batches(EACH)))
        with torch.no_grad():
            feat_BD, label_B = classifier(done.task).embed(model, batch)
        assert label_B.unique().tolist() == [label]
        torch.testing.assert_close(
            unit(done.state.memory.mean_KD[label]), unit(feat_BD.mean(dim=0)), rtol=1e-4, atol=1e-5
        )


def test_by_default_only_the_clients_of_a_round_are_asked(clients) -> None:
    ours, every = trained(clients), trained(clients, memory_clients="all")
    for key, value in ours.state.model.items():
        assert torch.equal(every.state.model[key], value), f"{key}: training is the same"
    assert int(every.state.memory.seen_K.sum()) == SITES
    assert int(ours.state.memory.seen_K.sum()) < SITES


def test_an_old_memory_is_told_once_with_the_key_that_helps(clients) -> None:
    events = []
    done = trained(clients, events.append, total=6, evaluate_every=1)
    [told] = of_kind(MemoryIsOld, events)
    assert 1 < told.round <= 6, "in the first round nobody knows what the others have"
    assert set(told.classes) < set(CLASSES[:SITES])
    assert "rounds.memory_clients" in told.text
    assert int(done.state.memory.seen_K.sum()) > 2, "these classes are remembered, as an earlier model saw them"


@pytest.mark.parametrize(
    ("keys", "withheld"),
    [({"memory_clients": "all"}, 1), ({"clients_per_round": 0}, 1), ({"clients_per_round": 0}, EACH + 1)],
    ids=["memory of all", "all train", "sums withheld"],
)
def test_nothing_is_told_if_no_other_client_could_help(clients, keys, withheld) -> None:
    """Though nobody has the last class, and though clients withhold sums over few examples."""
    clients = [replace(client, min_sum_examples=withheld) for client in clients]
    events = []
    trained(clients, events.append, total=4, evaluate_every=1, **keys)
    assert not of_kind(MemoryIsOld, events)


def test_without_training_the_memory_of_all_is_made_in_one_round(clients) -> None:
    done = trained(clients, epochs=0, total=1, evaluate_every=1, memory_clients="all")
    assert int(done.state.memory.seen_K.sum()) == SITES
