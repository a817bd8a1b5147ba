"""The mechanisms that few-shot sessions rely on, each tested on this implementation.

The numbers are those of the method's specification. The ninth, a comparison, is no test: see docs/incremental.md.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.flower_app import app
from fednc.client.app.resident_run import Resident, resident
from fednc.client.training import trainer
from fednc.common.learning.class_memory import ClassMemory, ClassSums
from fednc.common.learning.frame import draw_frame, frame_digest, unit
from fednc.common.learning.heads import FrameHead
from fednc.common.learning.losses import dot_regression
from fednc.common.tasks.round_guide import guide_at
from fednc.common.wire.arrays import to_tensor
from fednc.common.wire.messages import GUIDE, MODEL, TRAIN
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import RunResult
from fednc.tasks.fewshot.session_loss import balancing_weights, pull
from support.fewshot_rounds import run_until
from support.fewshot_run import (
    COSINE,
    DISCRIMINANT,
    DOT,
    FRAME,
    NEAREST,
    D,
    K,
    carry_out,
    clients,
    config,
    guide,
    prepare,
)

# ---- 1: the frame --------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.integers(0, 20), st.data())
def test_1_any_part_of_the_frame_keeps_its_angles(vertices: int, spare: int, data: st.DataObject) -> None:
    frame_KD = draw_frame(vertices, vertices - 1 + spare, seed=vertices).etf_KD.double()
    wanted_KK = vertices / (vertices - 1) * (torch.eye(vertices) - 1 / vertices)
    assert torch.allclose(frame_KD @ frame_KD.T, wanted_KK.double(), atol=1e-5)
    assert frame_KD.sum(dim=0).abs().max() < 1e-5
    seen = data.draw(st.lists(st.integers(0, vertices - 1), min_size=2, unique=True))
    gram = frame_KD[seen] @ frame_KD[seen].T
    apart = gram[~torch.eye(len(seen), dtype=torch.bool)]
    assert torch.allclose(apart, torch.full_like(apart, -1 / (vertices - 1)), atol=1e-5)


# ---- a whole run, watched ------------------------------------------------------------------------------------


class Watched:
    """One run in three stages, with everything that clients were sent and trained."""

    def __init__(self) -> None:
        self.run = config()
        self.frames: set[str] = set()
        self.residents: dict[int, Resident] = {}
        self.sent: list[tuple[int, dict[str, Tensor]]] = []  # round, model
        self.updates: list[tuple[int, set[str]]] = []
        self.optimised: list[tuple[Tensor, ...]] = []
        prepared, self.events = prepare(self.run)
        self.before = frame_digest(prepared.frame.etf_KD)
        with LocalGrid(self.run, clients(self.run), self._answer) as grid:
            self.result: RunResult = prepared.execute(grid, Surroundings(name_of=grid.name_of))

    def _answer(self, message: Message, context: Any) -> Message:
        answer = app(message, context)
        self.residents[context.node_id] = resident(context, self.run)
        if message.metadata.message_type == TRAIN:
            server_round = int(message.metadata.group_id)
            model, frame = message.content[MODEL], message.content[GUIDE]
            assert isinstance(model, ArrayRecord)
            assert isinstance(frame, ArrayRecord)
            self.frames.add(frame_digest(to_tensor(frame["frame"])))
            self.sent.append((server_round, {key: to_tensor(array).clone() for key, array in model.items()}))
            assert not answer.has_error(), answer.error
            self.updates.append((server_round, set(answer.content[MODEL])))
        return answer


@pytest.fixture(scope="module")
def watched() -> Watched:
    before = torch.optim.SGD.__init__
    optimised: list[Tensor] = []

    def noting(self: Any, params: Any, *args: Any, **options: Any) -> None:
        params = list(params)
        optimised.extend(params)
        before(self, params, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "__init__", noting)
        found = Watched()
    found.optimised = [tuple(optimised)]
    return found


def test_2_the_frame_stays_the_same_and_is_in_no_optimiser(watched: Watched) -> None:
    after = watched.result.frame
    assert watched.frames == {watched.before} == {frame_digest(after.etf_KD)}
    shapes = {tuple(tensor.shape) for tensor in watched.optimised[0]}
    assert shapes, "nothing was trained"
    assert tuple(after.etf_KD.shape) not in shapes
    assert not any(key.startswith("head") for key in watched.result.state.model)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(0, K - 1))
def test_3_dot_regression_pulls_and_never_pushes(seed: int, label: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    raw = torch.randn(1, D, generator=draw, dtype=torch.float64)
    etf_KD, label_B = FRAME.etf_KD.double(), torch.tensor([label])
    feat = (raw / raw.norm()).requires_grad_()
    loss = 0.5 * ((feat * etf_KD[label_B]).sum() - 1).square()  # on the sphere, with feat free
    (gradient,) = torch.autograd.grad(loss, feat)
    cos = (feat * etf_KD[label]).sum().detach()
    assert torch.allclose(gradient[0], -(1 - cos) * etf_KD[label], atol=1e-12)
    vertex = etf_KD[label] / etf_KD[label].norm()
    across = gradient[0] - (gradient[0] @ vertex) * vertex
    assert across.norm() < 1e-9
    free = (3 * raw).requires_grad_()
    whole = dot_regression(free, label_B, etf_KD)
    assert whole.item() == pytest.approx(loss.item(), abs=1e-6)
    (outer,) = torch.autograd.grad(whole, free)
    assert abs((outer * free).sum().item()) < 1e-6


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, K - 1), min_size=1, max_size=60), st.integers(0, 2**31))
def test_4_scaled_targets_are_weights(labels: list[int], seed: int) -> None:
    label_N = torch.tensor(labels)
    feat_ND = torch.randn(len(labels), D, generator=torch.Generator().manual_seed(seed))
    weight_N = balancing_weights(label_N)
    gamma = len(labels) / len(set(labels))
    scaled = []
    for feat, label in zip(unit(feat_ND), labels, strict=True):
        r = math.sqrt(gamma / labels.count(label))
        scaled.append(0.5 * (r * (feat @ FRAME.etf_KD[label]) - r) ** 2)
    head, plain = FrameHead(16.0, trainable=False), guide()
    weighted = pull(feat_ND, label_N, weight_N, head, plain) / plain.method.dot_weight
    assert weighted.item() == pytest.approx(torch.stack(scaled).mean().item(), rel=1e-4, abs=1e-6)
    assert weight_N.mean().item() == pytest.approx(1, rel=1e-5)


def test_5_after_the_base_only_the_projection_changes(watched: Watched) -> None:
    first = watched.run.rounds.total
    keys = list(watched.result.state.model)
    frozen = [key for key in keys if key.startswith("backbone.")]
    assert any("running_mean" in key for key in frozen)
    later = [model for server_round, model in watched.sent if server_round > first]
    assert later
    for model in [*later, watched.result.state.model]:
        assert all(torch.equal(model[key], later[0][key]) for key in frozen)
    moved = {key for key in keys if not torch.equal(watched.result.state.model[key], later[0][key])}
    assert moved == {key for key in keys if key.startswith("projection.")} == set(keys) - set(frozen)
    assert {frozenset(sent) for server_round, sent in watched.updates if server_round <= first} == {
        frozenset(keys)
    }
    assert {frozenset(sent) for server_round, sent in watched.updates if server_round > first} == {
        frozenset(moved)
    }


def test_5_a_frozen_part_is_in_evaluation_mode_and_the_rest_is_not() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout()), nn.Linear(3, 2))
    model.train()
    trainer.freeze(model, frozenset(key for key in model.state_dict() if key.startswith("0.")))
    assert [module.training for module in (model[0], *model[0], model[1])] == [False] * 4 + [True]
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 2
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(torch.randn(8, 3)).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_6_the_memory_is_exactly_the_mean_of_what_was_sent(watched: Watched) -> None:
    result, task = watched.result, watched.result.task
    memory = result.state.memory
    assert memory.seen_K.tolist() == [True] * 10 + [False] * 2
    assert memory.mean_KD.shape == (12, task.memory_dim)
    model = task.build_model()
    model.load_state_dict(result.state.model, strict=False)
    model.eval()
    sums = ClassSums.zeros(12, task.memory_dim)
    with torch.no_grad():
        for here in watched.residents.values():
            for stage in task.stages:
                mine, _ = here.at(stage)
                assert stage.is_first or mine.count_K.max() <= 5
                for batch in mine.eval_batches(64):
                    sums.add_batch(*task.embed(model, batch))
    assert torch.allclose(memory.mean_KD, sums.mean_KD.float(), atol=1e-6)
    kept = sum(v.numel() for v in memory.to_tensors().values())
    assert kept == 12 * (task.memory_dim + 1), "no single example is kept"


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_7_any_partition_of_the_examples_gives_the_pooled_mean(parts: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    feat_ND = unit(torch.randn(60, D, generator=draw))
    label_N = torch.randint(0, 4, (60,), generator=draw)
    owner_N = torch.randint(0, parts, (60,), generator=draw)
    owner_N[label_N == 0] = 0  # all but one client lack a class
    pooled = ClassSums.zeros(K, D)
    for part in torch.randperm(parts, generator=draw).tolist():
        mine = owner_N == part
        pooled.merge(ClassSums.zeros(K, D).add_batch(feat_ND[mine], label_N[mine]))
    whole = ClassSums.zeros(K, D).add_batch(feat_ND, label_N)
    assert torch.equal(pooled.sum_KD, whole.sum_KD)
    assert torch.equal(pooled.count_K, whole.count_K)
    memory = ClassMemory.empty(K, D).update(pooled, 0.0)
    for c in range(4):
        assert torch.allclose(memory.mean_KD[c], feat_ND[label_N == c].mean(dim=0), atol=1e-6)


@pytest.mark.parametrize(
    "method", [DOT, COSINE, NEAREST, DISCRIMINANT], ids=["frame", "cosine", "nearest", "discriminant"]
)
def test_8_only_seen_classes_are_predicted_and_all_of_them_are_tested(method: dict[str, Any]) -> None:
    result, _ = carry_out(config(method=method))
    task = result.task
    model = task.build_model()
    model.load_state_dict(result.state.model, strict=False)
    model.eval()
    inputs = torch.randn(300, 1, 8, 8)
    for stage in task.stages:
        with torch.no_grad():
            guide = guide_at(task, result.frame.etf_KD, result.state.memory, stage.last)
            scores = task.scores(model, inputs, guide)
        if method not in (NEAREST, DISCRIMINANT):  # whose memory holds the later classes by now
            assert scores[:, stage.classes :].isneginf().all()
            assert scores[:, : stage.classes].isfinite().all()
    test = task.load_test("digits").count_K
    for record, stage in zip(
        [r for r in result.history.rounds if r.session is not None], task.stages, strict=True
    ):
        assert record.test["examples"] == test[: stage.classes].sum()
        told = {name for name in record.test if name.startswith("accuracy/")}
        assert told == {f"accuracy/{name}" for name in task.class_names[: stage.classes]}


def test_10_neither_the_order_of_clients_nor_a_restart_changes_memory_or_model() -> None:
    run = config()
    result, _ = carry_out(run)
    prepared, _ = prepare(run)
    with LocalGrid(run, clients(run)) as grid:
        stopped = run_until(prepared, _backwards(grid), rounds=3)
    again, _ = prepare(run)
    again.restore(stopped)
    with LocalGrid(run, clients(run)) as grid:
        other = again.execute(_backwards(grid), Surroundings(name_of=grid.name_of))
    assert torch.equal(result.state.memory.mean_KD, other.state.memory.mean_KD)
    assert all(torch.equal(value, other.state.model[key]) for key, value in result.state.model.items())


def _backwards(grid: LocalGrid) -> LocalGrid:
    """The same grid with its clients in reverse order."""
    forwards = grid.get_node_ids()
    grid.get_node_ids = lambda: forwards[::-1]  # type: ignore[method-assign]
    return grid
