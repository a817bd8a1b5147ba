"""The controls of the class memory: each replaces it everywhere, on the same schedule, with the same weight.

Legend: B batch, K label space, D feature width.
"""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from fednc.client.app.flower_app import app as fednc_app
from fednc.common.config.tables import MethodSection
from fednc.common.learning.class_memory import ClassMemory, ClassSums
from fednc.common.learning.frame import draw_frame
from fednc.common.learning.heads import FrameHead, build_head
from fednc.common.learning.losses import blended_targets, memory_centre, objective
from fednc.common.learning.memory_controls import Memories, Pool, with_own_means
from fednc.common.learning.round_context import Guide
from support.contract_run import config, run_on_local

SOURCES = get_args(MethodSection.model_fields["memory_source"].annotation)
USES: dict[str, dict[str, Any]] = {
    "anchor": {"anchor": 1.0},
    "centre": {"centre": 1.0},
    "blend": {"target_blend": 0.5},
    "rehearsal": {"rehearsal": 1.0, "train_scale": True},
}
K, D, B = 6, 9, 24
ETF_KD = draw_frame(K, D, seed=0).etf_KD
LABEL_B = torch.arange(B) % K


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory(seen: list[bool], seed: int = 1) -> ClassMemory:
    seen_K = torch.tensor(seen)
    unit_KD = torch.nn.functional.normalize(normal(len(seen), D, seed=seed), dim=1)
    return ClassMemory(
        mean_KD=unit_KD * torch.linspace(0.5, 1, len(seen))[:, None] * seen_K[:, None], seen_K=seen_K
    )


def memories(seen: list[bool] | None = None) -> Memories:
    seen = seen or [True] * K
    return Memories(real=memory(seen), early=memory(seen, seed=2), single=memory(seen, seed=3))


def sums(seed: int, classes: list[int]) -> ClassSums:
    feat_BD = torch.nn.functional.normalize(normal(len(classes), D, seed=seed), dim=1)
    return ClassSums.zeros(K, D).add_batch(feat_BD, torch.tensor(classes))


@given(st.lists(st.booleans(), min_size=2, max_size=12), st.integers(0, 99))
def test_every_source_gives_vectors_only_to_seen_classes(seen: list[bool], seed: int) -> None:
    etf_KD = draw_frame(len(seen), 12, seed=0).etf_KD[:, :D]
    for source in SOURCES:
        given_ = memories(seen).under(source, etf_KD, seed)
        assert torch.equal(given_.seen_K, torch.tensor(seen))
        assert torch.equal(given_.mean_KD.any(dim=1), torch.tensor(seen))


@given(st.lists(st.booleans(), min_size=2, max_size=12).filter(lambda seen: sum(seen) > 1), st.integers(0, 99))
def test_shuffled_is_a_derangement_of_the_seen_classes_that_stays(seen: list[bool], seed: int) -> None:
    known = memories(seen)
    shuffled_KD = known.under("shuffled", ETF_KD[:1].expand(len(seen), D), seed).mean_KD
    real_KD = known.real.mean_KD
    from_K = [int((row == real_KD).all(dim=1).nonzero()[0]) for row in shuffled_KD[torch.tensor(seen)]]
    own_K = torch.tensor(seen).nonzero().flatten().tolist()
    assert sorted(from_K) == own_K
    assert all(a != b for a, b in zip(from_K, own_K, strict=True))
    again = Memories.all_from(memory(seen, seed=7)).under("shuffled", ETF_KD[:1].expand(len(seen), D), seed)
    assert torch.equal(again.mean_KD[own_K], memory(seen, seed=7).mean_KD[from_K]), "the same in every round"


def test_random_vectors_have_the_memorys_lengths_and_stay() -> None:
    first, later = (Memories.all_from(memory([True] * K, seed=s)).under("random", ETF_KD, 5) for s in (1, 2))
    torch.testing.assert_close(first.mean_KD.norm(dim=1), memory([True] * K).mean_KD.norm(dim=1))
    torch.testing.assert_close(first.mean_KD, later.mean_KD)  # all lengths are equal in this setting
    assert not torch.equal(first.mean_KD, memories().under("random", ETF_KD, 6).mean_KD)


def test_the_source_vertex_is_the_vertex() -> None:
    assert torch.equal(memories().under("vertex", ETF_KD, 0).mean_KD, ETF_KD)


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_stale_is_the_memory_of_the_end_of_the_warm_up(warmup: int) -> None:
    known, seen = Memories.all_from(ClassMemory.empty(K, D)), []
    for server_round in range(1, 5):
        pool = Pool(K, D, seed=0)
        pool.add(sums(server_round, [0, 1, 2, 3, 4, 5]), node=1)
        known = known.updated(pool, 0.0, warming_up=server_round <= warmup)
        seen.append((known.real.mean_KD, known.under("stale", ETF_KD, 0).mean_KD))
    frozen_KD = seen[max(0, warmup - 1)][0]
    assert all(torch.equal(stale_KD, frozen_KD) for _, stale_KD in seen[max(0, warmup - 1) :])
    assert torch.equal(seen[0][1], seen[0][0])


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_the_servers_own_means_come_from_one_holder_of_each_class_in_any_order(order: tuple[int, ...]) -> None:
    held = {11: sums(1, [0, 1, 1]), 22: sums(2, [1, 2, 2]), 33: sums(3, [2, 0, 0, 3])}
    pools = []
    for nodes in (tuple(held), tuple(list(held)[i] for i in order)):
        pool = Pool(K, D, seed=4)
        for node in nodes:
            pool.add(held[node], node)
        pools.append(pool)
    one, again = pools
    assert torch.equal(one.one.sum_KD, again.one.sum_KD)
    assert torch.equal(one.all.sum_KD, again.all.sum_KD)
    for c in range(4):
        holders = [s for s in held.values() if s.count_K[c]]
        assert any(
            torch.equal(one.one.sum_KD[c], s.sum_KD[c]) and one.one.count_K[c] == s.count_K[c] for s in holders
        )
    assert one.one.count_K[4:].sum() == 0


def test_a_clients_own_means_cover_its_classes_that_the_federation_has_seen() -> None:
    seen_K = torch.tensor([True, True, True, True, False, False])
    guide = guide_for("own", "anchor", seen_K=seen_K)
    own = with_own_means(guide, sums(1, [0, 2, 4, 4]))
    assert own.seen_K.tolist() == [True, False, True, False, False, False]
    assert torch.equal(own.mean_KD.double()[0], sums(1, [0, 2, 4, 4]).mean_KD[0].float().double())
    assert not own.mean_KD[~own.seen_K].any()


def guide_for(source: str, use: str, seen_K: Tensor | None = None, ramp: float = 1.0) -> Guide:
    method = MethodSection(name="fednc", memory_source=source, **USES[use])
    given_ = memories().under(source, ETF_KD, 0)
    seen_K = given_.seen_K if seen_K is None else seen_K
    return Guide(
        method=method,
        etf_KD=ETF_KD,
        mean_KD=given_.mean_KD,
        seen_K=seen_K,
        count_K=torch.ones(K),
        memory_ramp=ramp,
    )


def pull(source: str, use: str, ramp: float = 1.0) -> Tensor:
    """What the use of the memory adds to the gradients of the features and of the head's scale."""
    gradients = []
    for strength in (ramp, 0.0):
        guide = guide_for(source, use, ramp=strength)
        head = build_head(guide.method, D, K)
        feat_BD = normal(B, D, seed=8).requires_grad_()
        objective(feat_BD, LABEL_B, head, guide)[0].backward()
        assert feat_BD.grad is not None
        scale = [p.grad.reshape(1) for p in head.parameters() if p.grad is not None]
        gradients.append(torch.cat([feat_BD.grad.flatten(), *scale]))
    return gradients[0] - gradients[1]


@pytest.mark.parametrize("use", USES)
def test_each_source_pulls_in_another_direction(use: str) -> None:
    pulls = {source: pull(source, use) for source in SOURCES}
    # The blend of a vertex with itself is the vertex, so this control must not change training.
    same = {"vertex"} if use == "blend" else set()
    assert {source for source, one in pulls.items() if one.norm() < 1e-5} == same
    for a, b in itertools.combinations(SOURCES, 2):
        assert (pulls[a] - pulls[b]).norm() > 1e-5, (a, b)


@pytest.mark.parametrize("use", USES)
def test_the_memory_is_not_used_before_the_warm_up_ends(use: str) -> None:
    assert pull("memory", use, ramp=0.0).norm() == 0
    assert pull("memory", use, ramp=0.5).norm() > 1e-6


# ---- the two uses that came with the controls ------------------------------------------------------------------


def test_centre_is_the_distance_of_batch_means_one_class_at_a_time() -> None:
    feat_BD, known = normal(B, D, seed=3).double(), memory([True, True, False, True, True, True])
    label_B = torch.tensor([0, 0, 0, 1, 2, 2, 5, 5] * 3)
    wanted = []
    for c in (0, 1, 5):  # 2 has no memory, 3 and 4 are not in the batch
        rows = [row / row.norm() for row, label in zip(feat_BD, label_B, strict=True) if label == c]
        wanted.append(0.5 * ((sum(rows) / len(rows) - known.mean_KD[c].double()) ** 2).sum())  # type: ignore[operator]
    found = memory_centre(feat_BD, label_B, known.mean_KD.double(), known.seen_K)
    torch.testing.assert_close(found, sum(wanted) / 3)
    assert memory_centre(feat_BD, label_B, known.mean_KD.double(), torch.zeros(K, dtype=torch.bool)) == 0


def test_gradients_of_centre_and_blend() -> None:
    known = memory([True] * (K - 1) + [False])
    start_BD = normal(8, D, seed=3).double().requires_grad_()
    label_B = LABEL_B[:8]
    assert gradcheck(lambda f: memory_centre(f, label_B, known.mean_KD.double(), known.seen_K), start_BD)

    def blended(feat_BD: Tensor) -> Tensor:
        guide = Guide(
            method=MethodSection(target_blend=0.4),
            etf_KD=ETF_KD.double(),
            seen_K=known.seen_K,
            mean_KD=known.mean_KD.double(),
            count_K=torch.ones(K),
        )
        return objective(feat_BD, label_B, FrameHead(8.0, False), guide)[0]

    assert gradcheck(blended, start_BD)


@pytest.mark.parametrize("loss", ["ce", "dot"])
@pytest.mark.parametrize("ramp", [0.25, 1.0])
def test_blend_trains_towards_targets_between_vertex_and_memory(loss: str, ramp: float) -> None:
    known, share = memory([True] * (K - 1) + [False]), 0.4
    method = MethodSection(name="fednc", loss=loss, target_blend=share, scale=8.0, dot_weight=1.0)
    guide = Guide(
        method=method,
        etf_KD=ETF_KD,
        mean_KD=known.mean_KD,
        seen_K=known.seen_K,
        count_K=torch.ones(K),
        memory_ramp=ramp,
    )
    feat_BD, b = normal(B, D, seed=5), share * ramp
    target_KD = torch.stack([(1 - b) * m + b * v for m, v in zip(ETF_KD, known.mean_KD, strict=True)])
    target_KD = target_KD / target_KD.norm(dim=1, keepdim=True)
    cosine_BK = (feat_BD / feat_BD.norm(dim=1, keepdim=True)) @ target_KD.T
    if loss == "ce":
        wanted = -(8 * cosine_BK).log_softmax(dim=1)[torch.arange(B), LABEL_B].mean()
    else:
        wanted = (0.5 * (cosine_BK[torch.arange(B), LABEL_B] - 1) ** 2).mean()
    torch.testing.assert_close(objective(feat_BD, LABEL_B, FrameHead(8.0, False), guide)[0], wanted)
    torch.testing.assert_close(blended_targets(ETF_KD, known.mean_KD, known.seen_K, b), target_KD)
    assert torch.equal(guide.etf_KD, ETF_KD), "the frame itself stays"


def test_a_linear_head_has_no_targets_to_blend() -> None:
    with pytest.raises(ValueError, match="target_blend = 0"):
        MethodSection(name="fedavg", target_blend=0.5)


# ---- whole runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    methods = {source: {"name": "fednc", "anchor": 4.0, "memory_source": source} for source in SOURCES}
    methods["none"] = {"name": "fednc", "anchor": 0.0}
    folder = tmp_path_factory.mktemp("controls")
    return {
        name: run_on_local(config(method=method, rounds={"total": 3}), fednc_app, folder)
        for name, method in methods.items()
    }


def test_runs_with_different_sources_give_different_models(trained: dict[str, Any]) -> None:
    for a, b in itertools.combinations(trained, 2):
        one, other = trained[a].state.model, trained[b].state.model
        assert any(not torch.equal(one[key], other[key]) for key in one), (a, b)


def test_before_the_first_use_all_sources_give_the_same_run(trained: dict[str, Any]) -> None:
    """Round 1 warms up; the anchor has an effect from round 2."""
    losses = {name: [r.loss for r in result.history.rounds] for name, result in trained.items()}
    assert len({loss[0] for loss in losses.values()}) == 1
    assert len({loss[1] for loss in losses.values()}) > 5


def test_a_resumed_run_has_what_its_source_needs(trained: dict[str, Any]) -> None:
    for source in SOURCES:
        state, run = trained[source].state, trained[source].run
        again = Memories.from_tensors(state.memories.to_tensors(source))
        before, after = (m.under(source, trained[source].frame.etf_KD, run.seed) for m in (state.memories, again))
        assert torch.equal(before.mean_KD, after.mean_KD)
        assert torch.equal(before.seen_K, after.seen_K)
        assert before.metric_DD is not None
        assert after.metric_DD is not None
        assert torch.equal(before.metric_DD, after.metric_DD)
        assert torch.equal(before.metric_DD, state.memory.metric_DD) == (source != "stale")
    assert not torch.equal(trained["stale"].state.memories.early.mean_KD, trained["stale"].state.memory.mean_KD)
