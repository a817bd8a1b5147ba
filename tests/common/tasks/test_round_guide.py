"""The guide of a round is made in one place and is the same on both sides of the link."""

from __future__ import annotations

import ast
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict

from fednc.common.config.run import parse_run
from fednc.common.errors import ProtocolError
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import draw_frame
from fednc.common.tasks import discovery
from fednc.common.tasks.round_guide import guide_at, guide_of_model, memory_of
from fednc.common.wire import arrays
from fednc.common.wire.messages import GUIDE, frame_and_memory_of, guide_record
from support import fewshot_run
from support.image_tasks import make_task
from support.source_trees import parsed

ROOT = Path(__file__).parents[3]
K, D = 6, 16
FRAME = draw_frame(K, D, seed=0)
MEMORY = ClassMemory(mean_KD=torch.rand(K, D), seen_K=torch.arange(K) < 2, metric_DD=torch.eye(D))


def makes_a_guide(tree: ast.AST) -> bool:
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return any(isinstance(func, ast.Name) and func.id == "Guide" for func in calls)


def test_guides_are_made_in_one_place() -> None:
    paths = [
        path for floor in ("bench", "server", "client", "tasks", "common") for path in (ROOT / floor).rglob("*.py")
    ]
    made = [path for path in paths if makes_a_guide(parsed(path.read_text(encoding="utf-8")))]
    assert made == [ROOT / "common" / "tasks" / "round_guide.py"]


@pytest.mark.parametrize(("server_round", "ramp"), [(1, 0.0), (2, 1.0), (9, 1.0)])
def test_client_and_server_have_the_same_guide(server_round: int, ramp: float) -> None:
    task, count_K = make_task(), torch.arange(K)
    etf_KD, memory = frame_and_memory_of(RecordDict({GUIDE: guide_record(FRAME, MEMORY, evaluates=True)}))
    theirs = guide_at(task, etf_KD, memory, server_round, count_K=count_K)
    ours = guide_at(task, FRAME.etf_KD, MEMORY, server_round)
    assert ours.memory_ramp == theirs.memory_ramp == ramp
    assert torch.equal(theirs.count_K, count_K)
    assert not ours.count_K.any()
    for key in ("etf_KD", "mean_KD", "seen_K", "metric_DD"):
        assert torch.equal(getattr(ours, key), getattr(theirs, key)), key


@pytest.mark.parametrize("fade", [0.0, 0.5, 1.0])
def test_the_prior_fades_linearly_from_its_strength_to_what_is_left(fade: float) -> None:
    total, tau = 5, 0.8
    values = make_task().run.model_dump(exclude_defaults=True)
    method, rounds = {"name": "fednc", "prior_tau": tau, "prior_fade": fade}, {"total": total}
    task = discovery.get(parse_run({**values, "method": method, "rounds": rounds}))
    numbers = range(total + 3)  # 0 is before the first round
    found = [guide_at(task, FRAME.etf_KD, MEMORY, number).method.prior_tau for number in numbers]
    assert found[:2] == [tau, tau]
    assert found[total:] == pytest.approx([tau * (1 - fade)] * 3)
    steps = [before - after for before, after in pairwise(found[1 : total + 1])]
    assert steps == pytest.approx([tau * fade / (total - 1)] * (total - 1))
    assert guide_at(task, FRAME.etf_KD, MEMORY, 1, count_K=torch.arange(K)).method.parts == task.run.method.parts


@pytest.mark.parametrize("regression", [False, True])
def test_a_guide_gives_back_the_whole_memory_it_was_made_from(regression: bool) -> None:
    ridge = {"ridge_KD": torch.rand(K, D), "ridge_K": torch.rand(K)} if regression else {}
    before = replace(MEMORY, **ridge)
    after = memory_of(guide_at(make_task(), FRAME.etf_KD, before, 3)).to_tensors()
    assert after.keys() == before.to_tensors().keys()
    for name, value in before.to_tensors().items():
        assert torch.equal(after[name], value), name


def test_a_rounds_classes_are_those_of_its_stage() -> None:
    run = fewshot_run.config()
    task = fewshot_run.prepare(run)[0].task
    memory = ClassMemory.empty(task.label_space, task.memory_dim)
    for stage in task.stages:
        guide = guide_at(task, FRAME.etf_KD, memory, stage.last)
        assert (guide.classes, guide.earlier) == (stage.classes, stage.earlier)
        assert guide_of_model(task, FRAME.etf_KD, memory, stage.classes).classes == stage.classes
    plain = make_task()
    assert guide_at(plain, FRAME.etf_KD, MEMORY, 1).classes is None
    assert guide_of_model(plain, FRAME.etf_KD, MEMORY, 3).classes is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": None},
        {"more": torch.zeros(1)},
        {"seen": torch.zeros(K)},
        {"metric": torch.eye(D + 1)},
        {"mean": torch.zeros(K, D, dtype=torch.float64)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_guide_that_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    known = {"frame": FRAME.etf_KD, **{k.partition("_")[0]: v for k, v in asdict(MEMORY).items()}, **wrong}
    record = arrays.to_record({key: value for key, value in known.items() if value is not None})
    with pytest.raises(ProtocolError):
        frame_and_memory_of(RecordDict({GUIDE: record}))
    with pytest.raises(ProtocolError, match="no complete 'guide' record"):
        frame_and_memory_of(RecordDict())
