"""Optimisers and schedules by name."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from fednc.common.config.run import parse_run
from fednc.common.config.tables import TrainSection
from fednc.common.errors import ConfigError
from fednc.common.learning.optimisers import check_optimiser, learning_rate, make_optimiser, optimiser_names
from fednc.common.tasks import discovery
from support.prototype_tasks import LINE, installed


@pytest.mark.parametrize("name", optimiser_names())
def test_every_optimiser_of_torch_can_be_named_and_takes_a_step(name: str) -> None:
    param = nn.Parameter(torch.ones(4, 4))
    optimiser = make_optimiser([param], TrainSection(optimizer=name), 0.1)
    param.square().sum().backward()
    optimiser.step()
    assert type(optimiser).__name__.lower() == name
    assert not torch.equal(param, torch.ones(4, 4))


def test_options_reach_the_optimiser() -> None:
    section = TrainSection(optimizer="adamw", weight_decay=0.25, optimizer_options={"betas": [0.5, 0.75]})
    (group,) = make_optimiser([nn.Parameter(torch.ones(1))], section, 0.1).param_groups
    assert (group["lr"], group["weight_decay"], list(group["betas"])) == (0.1, 0.25, [0.5, 0.75])


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"optimizer": "adamx"}, "adamx"), ({"optimizer": "adam", "optimizer_options": {"no": 1}}, "do not fit")],
)
def test_an_unknown_optimiser_or_option_is_refused_before_the_run(keys: dict[str, object], said: str) -> None:
    with installed(), pytest.raises(ConfigError, match=said):
        discovery.get(parse_run({**LINE, "train": keys}))


@pytest.mark.parametrize(
    "options",
    [
        {"betas": []},
        {"betas": [0.9]},
        {"betas": {"a": 1}},
        {"foreach": True, "fused": True},
        {"differentiable": True},
        {"capturable": True},
        {"lr": 2.0},
        {"params": []},
    ],
)
def test_options_that_fail_in_any_way_are_refused_before_the_run(options: dict[str, object]) -> None:
    """PyTorch raises many types of error for them, some only in a step."""
    with pytest.raises(ConfigError, match="do not fit adam"):
        check_optimiser(TrainSection(optimizer="adam", optimizer_options=options))


@pytest.mark.parametrize("name", optimiser_names())
def test_every_named_optimiser_passes_the_check_before_the_run(name: str) -> None:
    check_optimiser(TrainSection(optimizer=name))


def test_rates_follow_the_schedule_after_the_warm_up() -> None:
    def rates(**keys: object) -> list[float]:
        section = TrainSection.model_validate({"lr": 1.0, **keys})
        return [learning_rate(section, number, 5) for number in range(1, 6)]

    assert rates() == [1.0] * 5
    assert rates(lr_decay=0.5) == [1.0, 0.5, 0.25, 0.125, 0.0625]
    assert rates(schedule="cosine") == pytest.approx([(1 + math.cos(math.pi * k / 5)) / 2 for k in range(5)])
    assert rates(schedule="linear") == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert rates(schedule="step", step_every=2, step_factor=0.5) == [1, 1, 0.5, 0.5, 0.25]
    assert rates(warmup_rounds=1, schedule="linear") == pytest.approx([0.5, 1, 0.75, 0.5, 0.25])


def test_unused_keys_leave_the_digest_of_a_run_as_it_was() -> None:
    assert not {"optimizer", "schedule", "accumulate"} & set(parse_run(LINE).decisive()["train"])


def test_making_a_task_that_trains_by_sgd_does_not_load_the_compiler() -> None:
    """PyTorch loads it with the first optimiser: two seconds and 70 MiB that a server and `predict` never use."""
    program = (
        "import sys; from fednc.common.config.run import parse_run; from fednc.common.tasks import discovery;"
        "discovery.get(parse_run({'task': {'classes': ['a', 'b']}}));"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
