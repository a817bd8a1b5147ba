"""The public test kit: our own tasks keep every promise, and a task that breaks one is found by it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from fednc.common.tasks.api import TaskData
from fednc.tasks.image.task import ImageTask
from fednc.testing import TaskContract, promises

SMALL = {"classes": [str(i) for i in range(10)], "size": 8, "channels": 1, "width": 8}
TABLES: dict[str, Any] = {"frame": {"dim": 16}, "train": {"batch": 64}}


class TestImage(TaskContract):
    task = "image"
    data = "digits"
    options: ClassVar = SMALL
    tables: ClassVar = TABLES


class TestFewShot(TaskContract):
    task = "fewshot"
    data = "digits"
    options: ClassVar = SMALL
    tables: ClassVar = TABLES


class Broken(ImageTask):
    """The image task, until a test breaks it."""


def failures(monkeypatch: pytest.MonkeyPatch, **spoilt: Any) -> set[str]:
    """The promises that the image task breaks when it does these things instead."""
    broken = type("Broken", (Broken,), spoilt)
    monkeypatch.setattr("fednc.common.tasks.discovery.load", lambda plugin: broken)

    class Contract(TaskContract):
        task, data, options, tables = "image", "digits", SMALL, TABLES

    found = set()
    for what, test in promises(Contract):
        try:
            test()
        except AssertionError:
            found.add(what)
    return found


def test_nothing_is_found_in_a_correct_task(monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures(monkeypatch) == set()


def _wrong_sums(self: ImageTask, *given: Any) -> Any:
    return {**ImageTask.statistics(self, *given), "correct": torch.tensor(7)}


def _float32(self: ImageTask, *given: Any) -> Any:
    return {name: value.float() for name, value in ImageTask.statistics(self, *given).items()}


def _nothing_but_one(self: ImageTask) -> Any:
    return {name: value + 1 for name, value in ImageTask.no_statistics(self).items()}


def _constant_loss(self: ImageTask, model: Any, batch: Any, guide: Any) -> Any:
    return (0.0 * next(model.parameters()).sum()), {}


def _infinite_loss(self: ImageTask, model: Any, batch: Any, guide: Any) -> Any:
    return next(model.parameters()).sum() * float("inf"), {}


def _own_randomness(self: ImageTask) -> Any:
    with torch.random.fork_rng():
        torch.seed()
        return ImageTask.build_model(self)


class Overlapping:
    """Data whose held-out share is part of the training rest too."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def hold_out(self, share: float, seed: int) -> tuple[TaskData, TaskData]:
        rest, held = self._data.hold_out(share, seed)
        return (rest, rest.hold_out(held.examples / rest.examples, seed)[1]) if held.examples else (rest, held)


def _overlapping(self: ImageTask, *given: Any) -> Any:
    return Overlapping(ImageTask.load_train(self, *given))


@pytest.mark.parametrize(
    ("spoilt", "promise"),
    [
        ({"statistics": _wrong_sums}, "statistics of two parts add up to those of the whole"),
        ({"statistics": _float32}, "adding no statistics changes nothing"),
        ({"no_statistics": _nothing_but_one}, "adding no statistics changes nothing"),
        ({"loss": _constant_loss}, "the loss is finite and differentiable"),
        ({"loss": _infinite_loss}, "the loss is finite and differentiable"),
        ({"build_model": _own_randomness}, "the same seed gives the same model"),
        ({"load_train": _overlapping}, "holding out takes each example once"),
        ({"version": 0}, "it is an entry point under its own name"),
        ({"shared_keys": lambda self, model: []}, "the keys that are sent arrive unchanged"),
        ({"check_statistics": lambda self, stats, announced: False}, "honest statistics pass its own check"),
        ({"measure": lambda self, stats: {"examples": 3.0}}, "metrics are numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_broken_promise_is_found(spoilt: dict[str, Any], promise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert promise in only(promise, monkeypatch, spoilt)


def only(promise: str, monkeypatch: pytest.MonkeyPatch, spoilt: dict[str, Any]) -> set[str]:
    """As `failures`, of one promise alone."""
    every = promises

    def one(contract: type[TaskContract]) -> Any:
        return [(what, test) for what, test in every(contract) if what == promise]

    monkeypatch.setitem(globals(), "promises", one)
    return failures(monkeypatch, **spoilt)
