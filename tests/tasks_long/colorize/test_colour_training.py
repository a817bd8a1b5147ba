"""Longer trainings: colours come from the reference, SCFT's attention has its conflict, the exported graph."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from fednc import testing
from fednc.client.link.work_hooks import Hooks
from fednc.client.training import trainer
from fednc.client.training.gradient_report import branch_gradients
from fednc.common.learning.attention_branches import BranchCosines
from fednc.common.tasks.evaluation import evaluate
from fednc.common.tasks.round_guide import first_guide
from fednc.tasks.colorize.characters import REGIONS
from support.colour_tasks import SMALL, TRAIN, colour_task

TRAINING, TEST = (
    "characters:images=64,seed=1,artist=all/3,free=0.6",
    "characters:test=24,seed=1,artist=all/3,free=0.6",
)
SIZE = {"size": [32, 32], "widths": [8, 16, 32], "adversary_widths": [8, 16], "perceptual_width": 8}


def trained(attention: str, epochs: int) -> tuple[Any, Any, dict[str, float], Any]:
    task = colour_task({"train": {**TRAIN, "batch": 8, "epochs": epochs}}, attention=attention, **SIZE)
    torch.manual_seed(0)
    model, data = task.build_model(), task.load_train(TRAINING, None, None)
    guide = first_guide(task, data.count_K)
    trainer.train(task, model, data, guide, task.run.train, 1, torch.Generator().manual_seed(0), Hooks())
    return task, model, task.measure(evaluate(task, model, task.load_test(TEST), guide, 12)), guide


def test_colours_come_from_the_reference() -> None:
    *_, found, _ = trained("sga", 20)
    assert found["colour_error"] < found["colour_error_own"] - 0.03
    assert found["l1"] < 0.2


@pytest.fixture(scope="module")
def branches() -> list[BranchCosines]:
    task, model, _, guide = trained("scft", 8)
    return branch_gradients(task, model, task.load_train(TRAINING, None, None), guide, 4)


@pytest.mark.parametrize("block", ["cross", "own"])
def test_scft_has_the_conflict_of_key_and_value(block: str, branches: list[BranchCosines]) -> None:
    told = {one.branch: one.summary() for one in branches if one.block.endswith(block) and one.given == "source"}
    assert told["value"]["token"] > 0.7
    assert told["value"]["token"] > told["key"]["token"] + 0.2
    assert 0.1 < told["key"]["against"] < 1


class TestExportedColours(testing.TaskContract):
    task = "colorize"
    data = "characters:images=12,test=6,seed=2,artist=0/3"
    options: ClassVar = {**SMALL, "classes": list(REGIONS)}
    tables: ClassVar = {"method": {"name": "fedavg"}, "train": {**TRAIN, "epochs": 1}}


class TestColoursWithRegions(TestExportedColours):
    options: ClassVar = {**SMALL, "classes": list(REGIONS), "region_weight": 0.5}
    tables: ClassVar = {"method": {"name": "fednc"}, "frame": {"dim": 8}, "train": {**TRAIN, "epochs": 1}}
    exports = False
