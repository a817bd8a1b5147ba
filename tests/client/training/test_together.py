"""Clients that train in lockstep have, after a step or an epoch, what each has when it trains alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fednc.client.link.work_hooks import Hooks
from fednc.client.training import together
from fednc.client.training.together import NotTogetherError, models_per_step, train_together
from fednc.client.training.trainer import LocalResult, LocalWork, train
from fednc.common import seeds
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.methods import registry
from fednc.common.methods.api import LocalRound, Tensors
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Task
from fednc.common.tasks.round_guide import guide_at
from fednc.common.tasks.tensor_data import LabelledTensors

EXAMPLES = 40, 37, 24, 40, 40  # batches of 16: two whole ones and one of 8, two and one of 5, one and one of 8
DIGITS = {
    "name": "image",
    "classes": [str(i) for i in range(10)],
    "model": "cnn",
    "width": 8,
    "size": 8,
    "channels": 1,
}
CIRCUIT = {"name": "quantum", "classes": ["even", "odd"], "values": 4, "model": "circuit", "layers": 2}
PULLS = {"name": "fednc", "anchor": 0.5, "centre": 0.5, "target_blend": 0.2, "warmup_rounds": 0}
CASES: dict[str, dict[str, Any]] = {
    **{
        name: {"method": {"name": name}}
        for name in ("fedavg", "fedprox", "scaffold", "fedlc", "feddyn", "fednova")
    },
    "memory": {"method": PULLS},
    "clipped": {"train": {"clip_norm": 0.01}},
    "two-epochs": {"train": {"epochs": 2, "momentum": 0.5, "weight_decay": 0.1}},
    "frozen": {"task": DIGITS | {"freeze": ["layer1"]}},
    "circuit": {"task": CIRCUIT, "method": {"name": "fedavg"}},
    "circuit-adam": {"task": CIRCUIT, "method": {"name": "fedavg"}, "train": {"optimizer": "adam"}},
    "mlp": {"task": CIRCUIT | {"model": "mlp"}, "method": {"name": "fedavg"}, "train": {"optimizer": "adamw"}},
}


def config(**changes: Any) -> RunConfig:
    train = {"batch": 16, **changes.pop("train", {})}
    return parse_run(
        {"task": DIGITS, "frame": {"dim": 16}, "method": {"name": "fednc"}, **changes, "train": train}
    )


class Forgetful:
    """A client's first round."""

    def read(self, kind: str) -> dict[str, Tensor]:
        del kind
        return {}

    def write(self, kind: str, tensors: Tensors) -> None:
        del kind, tensors


def examples_for(task: Task, number: int, draw: torch.Generator) -> LabelledTensors:
    label_N = torch.randint(0, task.label_space, (number,), generator=draw)
    shape = (4,) if task.name == "quantum" else (1, 8, 8)
    value = torch.rand(number, *shape, generator=draw)
    return LabelledTensors(
        tensors=(value.round() if task.name == "quantum" else value, label_N), label_space=task.label_space
    )


def works_for(run: RunConfig, examples: Sequence[int] = EXAMPLES) -> list[LocalWork]:
    """The work of one round for each client; everything is drawn anew, and alike in every call."""
    task, draw = discovery.get(run), torch.Generator().manual_seed(7)
    torch.manual_seed(1)
    model = task.build_model()
    frame = task.frame(0)
    memory = ClassMemory.empty(frame.vertices, task.memory_dim)
    if run.method.anchor:
        memory.mean_KD.copy_(0.8 * frame.etf_KD)
        memory.seen_K[::2] = True
    works = []
    for client, number in enumerate(examples):
        own, data = copy.deepcopy(model), examples_for(task, number, draw)
        start = LocalRound(
            model=own,
            stepped=task.stepped_keys(own),
            received=beside(run, own),
            state=Forgetful(),
            train=run.train,
            number=1,
            lr=run.train.lr,
        )
        works.append(
            LocalWork(
                task=task,
                model=own,
                data=data,
                guide=guide_at(task, frame.etf_KD, memory, 1, count_K=data.count_K),
                section=run.train,
                server_round=1,
                generator=seeds.generator(3, client),
                hooks=Hooks(),
                additions=[one for part in registry.parts(run.method) if (one := part.local(start)) is not None],
                frozen=[key for key in own.state_dict() if task.is_frozen(key)],
                rounds=1,
                optimisers={},
            )
        )
    return works


def beside(run: RunConfig, model: nn.Module) -> dict[str, Tensor]:
    params = {name: p.detach() for name, p in model.named_parameters()}
    return {k: v + 0.01 for part in registry.parts(run.method) for k, v in part.beside(params).items()}


def sent(work: LocalWork) -> dict[str, Tensor]:
    """What the client would send."""
    trained: Mapping[str, Tensor] = work.model.state_dict()
    for one in work.additions:
        trained = one.outgoing(trained)
    return dict(trained) | {key: value for one in work.additions for key, value in one.finish().items()}


def assert_same(one: tuple[LocalWork, LocalResult], other: tuple[LocalWork, LocalResult]) -> None:
    (work, result), (work_too, result_too) = one, other
    assert (result.examples, result.steps) == (result_too.examples, result_too.steps)
    assert result.losses == pytest.approx(result_too.losses, abs=1e-5)
    assert torch.equal(work.generator.get_state(), work_too.generator.get_state())
    mine, others = sent(work), sent(work_too)
    assert list(mine) == list(others)
    for key, value in mine.items():
        torch.testing.assert_close(
            value, others[key], atol=1e-5, rtol=0, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("case", CASES)
def test_a_round_in_lockstep_is_that_of_each_client_alone(case: str) -> None:
    run = config(**CASES[case])
    works, alone = works_for(run), works_for(run)
    before = copy.deepcopy(works[0].model.state_dict())
    results = train_together(works)
    assert any(not torch.equal(before[key], value) for key, value in works[0].model.state_dict().items())
    for work, result, other in zip(works, results, alone, strict=True):
        assert_same((work, result), (other, train(**vars(other))))


def test_clients_take_no_notice_of_each_other() -> None:
    """In another order, and with another client among them, each one's result is the same."""
    run = config()
    works, others = works_for(run), works_for(run, (*EXAMPLES, 33))
    results, turned = train_together(works), train_together(others[::-1])[::-1]
    for one, other in zip(zip(works, results, strict=True), zip(others, turned, strict=False), strict=False):
        assert_same(one, other)


class Decides(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return value if float(value.detach().sum()) > -1e9 else -value


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "batch-norm": ({"task": DIGITS | {"norm": "batch"}}, "layer BatchNorm2d"),
    "companions": ({"method": {"name": "moon"}}, "method 'moon' compares models"),
    "accumulate": ({"train": {"accumulate": 2}}, "several batches share a step"),
    "low-precision": ({"train": {"precision": "bf16"}}, "low precision"),
    "large": ({"train": {"batch": 128}}, "a batch has 8192 numbers"),
}


def assert_unchanged(works: Sequence[LocalWork], others: Sequence[LocalWork]) -> None:
    for work, other in zip(works, others, strict=True):
        assert torch.equal(work.generator.get_state(), other.generator.get_state())
        state = other.model.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in work.model.state_dict().items())


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_batched_or_does_not_pay_is_refused_unchanged(case: str) -> None:
    changes, reason = REFUSED[case]
    works = works_for(config(**changes), [128] * 5 if case == "large" else EXAMPLES)
    with pytest.raises(NotTogetherError, match=reason):
        train_together(works)
    assert_unchanged(works, works_for(config(**changes), [work.data.examples for work in works]))


@pytest.mark.parametrize("layer", [Decides(), nn.RReLU()])
def test_a_model_that_decides_or_draws_is_found_in_its_first_step(layer: nn.Module) -> None:
    works = works_for(config())
    for work in works:
        work.model.projection = nn.Sequential(layer, work.model.projection)  # type: ignore[assignment,arg-type]
    before = [copy.deepcopy(work.model.state_dict()) for work in works]
    with pytest.raises(NotTogetherError, match="PyTorch cannot batch the model"):
        train_together(works)
    for work, other, state in zip(works, works_for(config()), before, strict=True):
        assert torch.equal(work.generator.get_state(), other.generator.get_state())
        assert all(torch.equal(value, state[key]) for key, value in work.model.state_dict().items())
        train(**vars(work))  # it can still train alone


@pytest.mark.parametrize("examples", [EXAMPLES, (64, 64, 64), (200, 6, 7, 9), (16, 32, 48), (5,)])
def test_models_per_step_are_those_that_take_it_together(examples: tuple[int, ...]) -> None:
    members = [together._Member(work) for work in works_for(config(), examples)]
    groups = [len(group) for group in together._groups(members)]
    assert models_per_step(examples, 16) == pytest.approx(sum(groups) / len(groups))


def test_clients_of_very_unlike_size_train_alone() -> None:
    with pytest.raises(NotTogetherError, match=r"a step would have 1\.\d models"):
        train_together(works_for(config(), (200, 6, 7, 9)))
