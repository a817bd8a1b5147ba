"""The loss of a session of few-shot learning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.client.app.initialisation import ClientInitialisation
from fednc.client.app.resident_run import Resident
from fednc.client.link.work_hooks import Hooks
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError
from fednc.common.initialise import messages
from fednc.common.initialise.probe import Layout
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import draw_frame, unit
from fednc.common.learning.heads import CosineHead, FrameHead, logits
from fednc.common.tasks import discovery
from fednc.common.tasks.round_guide import guide_at
from fednc.common.tasks.splits import at_few_sites
from fednc.common.tasks.stages import with_names
from fednc.common.wire import arrays
from fednc.tasks.fewshot.rotated_classes import TURNS, with_virtual
from fednc.tasks.fewshot.session_loss import deviation, rehearsed, session_loss
from support.fewshot_run import DOT, D, K, carry_out, config, guide


def test_memory_stands_in_for_classes_without_examples_and_copies_count() -> None:
    seen_K = torch.arange(K) < 8
    held_K = torch.arange(K) >= 6
    memory_KD = torch.randn(K, D)
    mean_MD, label_M = rehearsed(guide(mean_KD=memory_KD, seen_K=seen_K), base=4, copies=3, held_K=held_K)
    assert label_M.tolist() == [0, 1, 2, 3, 4, 4, 4, 5, 5, 5]
    assert torch.equal(mean_MD, memory_KD[label_M])


def test_mixing_half_and_half_keeps_a_batch_of_one_class_as_it_is() -> None:
    feat_ND, label_N = torch.randn(1, D).repeat(6, 1), torch.full((6,), 2)
    head = FrameHead(16.0, trainable=False)
    plain, mixed = (session_loss(feat_ND, label_N, head, guide(), balance=True, mixup=p) for p in (0.0, 1.0))
    assert plain.item() == pytest.approx(mixed.item(), rel=1e-5)


def test_memory_terms_without_meaning_here_are_refused() -> None:
    with pytest.raises(ConfigError, match="before the projection"):
        discovery.get(config(method={**DOT, "anchor": 0.1}))


# ---- virtual classes and the memory's spread -----------------------------------------------------------------


def test_a_part_of_a_batch_is_rotated_and_uses_the_last_vertices() -> None:
    pixel_BCHW, label_B = torch.randn(400, 1, 4, 4), torch.arange(400) % 2
    method = config(method={**DOT, "virtual_share": 0.5}, frame={"vertices": 28}).method
    torch.manual_seed(0)
    plain = guide(method=method, count_K=torch.bincount(label_B, minlength=K))
    (shown_BCHW, virtual_B), knowing = with_virtual((pixel_BCHW, label_B), plain, base=2)
    first = K - 2 * TURNS
    turn_B = torch.where(virtual_B < 2, 0, (virtual_B - first) // 2 + 1)
    assert 0.4 < (turn_B > 0).float().mean() < 0.6
    assert torch.equal((virtual_B - torch.where(turn_B > 0, first, 0)) % 2, label_B)
    for shown, pixel, turn in zip(shown_BCHW, pixel_BCHW, turn_B.tolist(), strict=True):
        assert torch.equal(shown, torch.rot90(pixel, turn, (1, 2)))
    assert knowing.virtual == 2 * TURNS
    assert knowing.count_K.tolist() == pytest.approx([100, 100, 0, 0, *[200 * 0.5 / TURNS] * 6])
    scores_BK = logits(CosineHead(D, K, 1.0, trainable=False), torch.randn(3, D), replace(knowing, classes=2))
    assert scores_BK.isneginf().any(dim=0).nonzero().flatten().tolist() == [2, 3]  # no class has them yet


def test_virtual_classes_are_refused_without_room_or_sessions() -> None:
    with pytest.raises(ConfigError, match="need 18 spare vertices, but there are 2"):
        discovery.get(config(method={**DOT, "virtual_share": 0.5}))
    with pytest.raises(ConfigError, match="tasks that support"):
        discovery.get(parse_run({"task": {"classes": ["a", "b"]}, "method": {"spread": 1}}))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 40), st.floats(0.1, 2.0), st.integers(0, 2**31))
def test_the_memory_gives_the_spread_of_features(dim: int, noise: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    feat_ND = unit(torch.randn(1, dim, generator=draw) + noise * torch.randn(500, dim, generator=draw))
    memory_KD = torch.zeros(K, dim)
    memory_KD[1] = feat_ND.mean(dim=0)
    found = deviation(guide(mean_KD=memory_KD, seen_K=torch.arange(K) == 1), base=3)
    assert found.square().item() == pytest.approx((feat_ND - memory_KD[1]).square().mean().item(), rel=1e-3)


def test_a_spread_memory_stands_for_every_class_and_lies_around_its_mean() -> None:
    seen_K, held_K = torch.arange(K) < 4, torch.arange(K) == 3
    memory_KD = 0.9 * torch.eye(K)
    spread = guide(method=config(method={**DOT, "spread": 300}).method, mean_KD=memory_KD, seen_K=seen_K)
    feat_MD, label_M = rehearsed(spread, base=3, copies=1, held_K=held_K)
    assert label_M.bincount().tolist() == [300] * 4
    assert torch.allclose(feat_MD.norm(dim=1), torch.ones(len(feat_MD)), atol=1e-5)
    for label in range(4):
        assert torch.cosine_similarity(feat_MD[label_M == label].mean(dim=0), memory_KD[label], dim=0) > 0.99


# ---- classes at few sites ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_later_classes_are_left_to_the_sites_that_have_most_of_them(parts: int, sites: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels, owner = draw.integers(0, 6, 200), draw.integers(0, parts, 200)
    before = [np.flatnonzero(owner == part) for part in range(parts)]
    after = at_few_sites(labels, before, sites, first=4)
    for label in range(6):
        had, has = (np.array([(labels[part] == label).sum() for part in index]) for index in (before, after))
        if label < 4:
            assert np.array_equal(had, has)
            continue
        assert (has > 0).sum() == min(sites, parts, (had > 0).sum())
        assert set(has) <= {0, *had}
        assert has.sum() == np.sort(had)[::-1][:sites].sum()


def test_a_run_whose_later_classes_are_at_one_site_asks_only_that_site() -> None:
    result, _ = carry_out(config(split={"sites": 1}))
    replies = [record.replies for record in result.history.rounds]
    assert replies[:2] == [3, 3]
    assert all(1 <= found <= 2 for found in replies[2:])  # two classes: one site or two
    assert result.state.memory.seen_K[:10].all()


def test_an_operator_may_name_classes_on_vertices_of_virtual_ones() -> None:
    sessions = [{"classes": [], "shots": 5, "rounds": 1, "start": "operator"}]
    run = config(method={**DOT, "virtual_share": 0.5}, frame={"dim": 32, "vertices": 24}, sessions=sessions)
    assert discovery.get(run).label_space == 24
    named = discovery.get(with_names(run, 1, ("6", "7")))  # the run is in progress and must not end here
    assert named.class_names[-2:] == ("6", "7")


def test_the_gradient_of_one_batch_is_the_same_every_time() -> None:
    run = config(
        method={**DOT, "virtual_share": 0.5}, frame={"dim": 32, "vertices": 30}, init={"kind": "nio-exact"}
    )
    task = discovery.get(run)
    here = Resident(
        run=run,
        task=task,
        model=task.build_model(),
        train=task.load_train("digits", None, None),
        held_out=task.load_test("digits"),
        device=torch.device("cpu"),
        node="a",
        min_sum_examples=1,
    )
    frame = draw_frame(30, 32, 0)
    guide = guide_at(task, frame.etf_KD, ClassMemory.empty(30, task.memory_dim), 1)
    mine, _ = here.at(task.stage(1))
    client = ClientInitialisation(here, mine, guide, Hooks())
    order = RecordDict({messages.ORDER: messages.Order(iteration=0).to_record()})
    layout = Layout.of(here.model, task.shared_keys(here.model))
    order[messages.INIT] = arrays.to_record({messages.SCALE: torch.ones(len(layout.scaled))})
    first, again = (messages.answer_in(client.gradient(order), layout) for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first.unit_N, again.unit_N)
