"""Optimisers and learning-rate schedules, by their names in a run file.

Called by the client's trainer; the task contract checks the names before a run. Knows no task and no method.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fednc.common.config.tables import TrainSection
from fednc.common.errors import ConfigError

SGD = "sgd"
# They need a closure, sparse gradients, and a model of matrices only.
_UNUSABLE = {"lbfgs", "sparseadam", "muon"}


def optimiser_names() -> list[str]:
    """Names of the optimisers in `torch.optim`, in lower case."""
    found = (value for value in vars(torch.optim).values() if inspect.isclass(value))
    names = {one.__name__.lower() for one in found if issubclass(one, torch.optim.Optimizer)}
    return sorted(names - _UNUSABLE - {"optimizer"})


def make_optimiser(
    params: Sequence[nn.Parameter], section: TrainSection, lr: float, *, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The optimiser that `[train]` chooses, for these parameters.

    SGD uses `momentum` and `weight_decay`. Other optimisers use `weight_decay` if they have one. Both also use
    `optimizer_options`. Raises ConfigError for an unknown optimiser or option.
    """
    if section.optimizer == SGD:
        keys: dict[str, Any] = {"momentum": section.momentum, "weight_decay": section.weight_decay, "fused": fused}
        kind: Any = torch.optim.SGD
    else:
        kind = _kind(section.optimizer)
        keys = (
            {"weight_decay": section.weight_decay} if "weight_decay" in inspect.signature(kind).parameters else {}
        )
    try:
        made: torch.optim.Optimizer = kind(params, lr=lr, **{**keys, **section.optimizer_options})
    except Exception as e:  # PyTorch raises any type, depending on the optimiser and the option
        raise _unfit(section, e) from e
    return made


def _unfit(section: TrainSection, error: Exception) -> ConfigError:
    options = ", ".join(sorted(section.optimizer_options))
    why = f"{type(error).__name__}: {error}"
    return ConfigError(f"train.optimizer_options ({options}) do not fit {section.optimizer}: {why}")


def _kind(name: str) -> Any:
    if name not in optimiser_names():
        raise ConfigError(f"train.optimizer: {name!r} is not one of {', '.join(optimiser_names())}")
    return next(
        value for key, value in vars(torch.optim).items() if key.lower() == name and inspect.isclass(value)
    )


def check_optimiser(section: TrainSection) -> None:
    """Raises ConfigError if the run's optimiser cannot be created or cannot take a step."""
    if section.is_plain_sgd:
        return  # the run file's own checks are enough; PyTorch takes seconds to create its first optimiser
    param = nn.Parameter(torch.zeros(1))
    optimiser = make_optimiser([param], section, section.lr)
    param.grad = torch.zeros(1)
    try:
        optimiser.step()  # some options are only used here
    except Exception as e:
        raise _unfit(section, e) from e


def learning_rate(section: TrainSection, number: int, rounds: int) -> float:
    """Learning rate of round `number` of `rounds`, from 1: `lr`, with `lr_decay` per round, and `schedule`."""
    lr = section.lr * section.lr_decay ** (number - 1)
    if number <= section.warmup_rounds:
        return lr * number / (section.warmup_rounds + 1)
    done, all_ = number - 1 - section.warmup_rounds, max(1, rounds - section.warmup_rounds)
    if section.schedule == "cosine":
        lr *= (1 + math.cos(math.pi * min(1.0, done / all_))) / 2
    elif section.schedule == "linear":
        lr *= 1 - min(1.0, done / all_)
    elif section.schedule == "step":
        lr *= section.step_factor ** (done // section.step_every)
    return lr
