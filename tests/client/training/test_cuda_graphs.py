"""Captured and replayed training steps: which ones are captured, and that they train like the written ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fednc.client.link.work_hooks import Hooks
from fednc.client.training import cuda_graphs, trainer
from fednc.client.training.cuda_graphs import Losses, Step, Steps, Tensors
from fednc.client.training.round_state import Past
from fednc.common.config.run import parse_run
from fednc.common.methods.api import LocalRound
from fednc.common.tasks import discovery
from support import fewshot_run
from support.image_tasks import make_data, make_guide, make_task

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@given(st.lists(st.integers(1, 3), max_size=12))
def test_every_batch_is_trained_once_and_a_repeated_shape_is_captured_once(sizes: list[int]) -> None:
    trained: list[tuple[str, int, float]] = []
    captured: list[int] = []

    def step(batch: Tensors, how: str = "written") -> Losses:
        trained.append((how, len(batch[0]), float(batch[0][0])))
        return {}

    def capture(inner: Step, batch: Tensors) -> Step:
        assert inner is step
        captured.append(len(batch[0]))
        return lambda batch: step(batch, "replayed")

    take = Steps(step, capture)
    for number, size in enumerate(sizes):
        take((torch.full((size,), float(number)),))
    first = {size: sizes.index(size) for size in sizes}
    assert trained == [
        ("written" if first[size] == number else "replayed", size, float(number))
        for number, size in enumerate(sizes)
    ]
    assert sorted(captured) == sorted(size for size in first if sizes.count(size) > 1)


def test_a_task_that_draws_in_its_loss_is_not_captured() -> None:
    """What is drawn while a step is captured would be repeated at every replay."""
    run = fewshot_run.config()
    guide = fewshot_run.guide(run)
    turning = guide.method.model_copy(update={"virtual_share": 0.5})
    task = discovery.get(run)
    assert task.same_for_each_batch(guide)
    assert not task.same_for_each_batch(replace(guide, earlier=6))
    assert not task.same_for_each_batch(replace(guide, method=turning))


def test_nothing_is_captured_on_a_cpu() -> None:
    assert cuda_graphs.capture_for(torch.device("cpu")) is None
    with cuda_graphs.beside_default_stream(torch.device("cpu")):
        pass


METHODS: dict[str, dict[str, Any]] = {
    name: {"method": {"name": name}}
    for name in ("fedavg", "fedprox", "scaffold", "moon", "fedntd", "fednc", "feddyn", "fednova")
} | {"clipped": {"train": {"clip_norm": 0.1}}, "coarse": {"train": {"precision": "bf16"}}}


def trained(values: dict[str, Any], device: torch.device, rounds: int = 2) -> dict[str, Tensor]:
    """State of a small network after some rounds of three epochs. Calls do not affect each other."""
    torch.manual_seed(0)
    name = values.get("method", {}).get("name", "fednc")
    task = make_task(name, channels=3, norm="batch", augment="crop-flip")
    section = parse_run({"train": {"batch": 8, "epochs": 3, "lr": 0.05, **values.get("train", {})}}).train
    model, data = task.build_model().to(device), make_data(task, 43, augment=True).to(device)
    guide, record = make_guide(task, data).to(device), RecordDict()
    parts = task.run.method.parts
    assert all(part.same_for_each_batch for part in parts)
    beside = {key: value for part in parts for key, value in part.beside(dict(model.named_parameters())).items()}
    received = {key: 0.01 * torch.ones_like(value).cpu() for key, value in beside.items()}
    for number in range(1, rounds + 1):
        start = LocalRound(
            model=model,
            stepped=task.stepped_keys(model),
            received=received,
            state=Past(record, number),
            train=section,
            number=number,
            lr=section.lr,
        )
        added = [one for part in parts if (one := part.local(start)) is not None]
        draw = torch.Generator().manual_seed(number)
        result = trainer.train(task, model, data, guide, section, number, draw, Hooks(), added)
        assert result.steps == 18
        for one in added:
            one.finish()
    return {key: value.cpu() for key, value in model.state_dict().items()}


@pytest.fixture
def exact() -> Iterator[None]:
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


@gpu
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("name", METHODS)
def test_replayed_steps_train_like_written_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    replayed = trained(METHODS[name], cuda)
    again = trained(METHODS[name], cuda)
    monkeypatch.setattr(trainer, "capture_for", lambda _: None)
    written = trained(METHODS[name], cuda)
    for key in written:
        assert torch.equal(replayed[key], again[key]), f"{key} differs between two runs"
        torch.testing.assert_close(replayed[key], written[key], rtol=1e-4, atol=1e-5)


@gpu
def test_memory_does_not_grow_with_rounds() -> None:
    cuda = torch.device("cuda")
    trained({}, cuda)
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    trained({}, cuda, rounds=6)
    assert torch.cuda.memory_reserved() <= before + 2**21
