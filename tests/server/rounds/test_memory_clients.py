"""`rounds.memory_clients`: with few clients in a round, the class memory of its model is of these or of all."""

from __future__ import annotations

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

SITES, EACH, CLASSES = 6, 12, ["a", "b", "c", "d", "e", "f"]


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


def trained(clients, **rounds):
    run = parse_run(
        {
            "seed": 3,
            "task": {"classes": CLASSES, "size": 8, "channels": 1, "width": 8},
            "frame": {"dim": 8},
            "rounds": {"total": 3, "min_clients": 2, "clients_per_round": 2, "evaluate_every": 3, **rounds},
        }
    )
    with LocalGrid(run, clients) as grid:
        done = FederatedRun(run, EventLog(), torch.device("cpu"))
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
