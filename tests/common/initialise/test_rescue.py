"""Which scales the search chooses, and what they are worth: training from weak and exploding starts."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fednc.common.config.tables import InitSection
from fednc.common.initialise.nio import Learnt, Search, learn
from support.initialisation_digits import Place, place

SMALL = {"batch": 32, "iters": 5}


def walked(cosines_and_norms: list[tuple[float, float]], **section: object) -> tuple[Learnt, list[torch.Tensor]]:
    """A search over one tensor with these cosines (of two directions) and norms along its path."""
    search = Search(torch.zeros(1), InitSection.model_validate({"gamma": 10.0, **section}))
    path = []
    for cosine, norm in cosines_and_norms:
        path.append(search.scale_P)
        sum_N = torch.tensor([2 + 2 * cosine]).sqrt()
        search.step(search.aim(sum_N, [norm, norm]), torch.tensor([-1.0]))
    return search.learnt(), [*path, search.scale_P]


@given(st.lists(st.tuples(st.floats(-0.9, 0.9), st.floats(0.1, 20)), min_size=1, max_size=8))
def test_the_best_scales_within_the_bound_are_used_or_else_the_last(way: list[tuple[float, float]]) -> None:
    found, path = walked(way)
    within = [cosine for cosine, norm in way if norm <= 10]
    if not within:
        assert torch.equal(found.scale_P, path[-1])
    else:
        chosen = next(i for i, scale_P in enumerate(path) if torch.equal(scale_P, found.scale_P))
        assert way[chosen][1] <= 10
        assert way[chosen][0] == pytest.approx(max(within), abs=1e-5)


def test_norms_in_the_objective_count_too() -> None:
    found, path = walked([(0.5, 1.0), (0.4, 9.0), (0.9, 11.0)], objective="cosine-norm")
    assert torch.equal(found.scale_P, path[1])


# ---- 6: batch normalisation


GAMMA = 5.0
RESCUE = {"batch": 64, "iters": 100, "lr": 0.02, "objective": "cosine", "gamma": GAMMA}


def learnt(gain: float, seed: int) -> tuple[Place, tuple[float, float], tuple[float, float]]:
    here = place({**RESCUE, "gain": gain}, seed=seed)
    probing = here.cuts(next(here.data.train_batches(256, torch.Generator().manual_seed(99))))
    before = here.measure(probing)
    learn(here.probe, itertools.islice(map(here.cuts, here.batches()), here.section.iters), here.section)
    return here, before, here.measure(probing)


@pytest.fixture(scope="module", params=[0, 1])
def rescued(request: pytest.FixtureRequest) -> tuple[Place, tuple[float, float], tuple[float, float]]:
    return learnt(0.7, request.param)


def test_a_weak_start_is_made_to_agree(rescued: tuple) -> None:
    _, (cosine_before, _), (cosine, norm) = rescued
    assert cosine - cosine_before >= 0.5
    assert 0.3 * GAMMA <= norm <= 1.2 * GAMMA


def test_an_exploding_start_is_bounded() -> None:
    _, (_, before), (_, after) = learnt(1.5, 0)
    assert before > 1.2 * GAMMA
    assert after <= 1.2 * GAMMA


def accuracy_after(here: Place, epochs: int) -> float:
    sgd = torch.optim.SGD(here.model.parameters(), lr=0.02, momentum=0.9)
    draw = torch.Generator().manual_seed(7)
    for _ in range(epochs):
        for batch in here.data.train_batches(64, draw):
            sgd.zero_grad()
            here.task.loss(here.model, batch, here.guide)[0].backward()
            nn.utils.clip_grad_norm_(here.model.parameters(), 1.0)
            sgd.step()
    test, hits = here.task.load_test("digits"), 0.0
    with torch.no_grad():
        for batch in test.eval_batches(256):
            hits += float(here.task.statistics(here.model, batch, here.guide)["correct"])
    return hits / test.examples


def test_training_from_a_rescued_start_is_thirty_points_ahead(rescued: tuple) -> None:
    here, _, _ = rescued
    plain = place({"gain": 0.7}, seed=here.run.seed)
    assert accuracy_after(here, 6) - accuracy_after(plain, 6) >= 0.3
