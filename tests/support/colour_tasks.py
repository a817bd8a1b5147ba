"""Small runs of the colouring task over generated characters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fednc.common.config.run import RunConfig, parse_run
from fednc.common.tasks import discovery
from fednc.tasks.colorize.characters import REGIONS
from fednc.tasks.colorize.colour_task import ColourTask

SMALL = {"size": [16, 16], "widths": [4, 8], "adversary_widths": [4, 8], "perceptual_width": 4}
TRAIN = {
    "optimizer": "adam",
    "optimizer_options": {"betas": [0.5, 0.999]},
    "lr": 0.002,
    "batch": 4,
    "weight_decay": 0,
}


def colour_run(tables: Mapping[str, Any] | None = None, **task: Any) -> RunConfig:
    """A run of the task; `task` changes keys of [task], `tables` adds tables."""
    values = {"classes": list(REGIONS), **SMALL, **task}
    method = {"name": "fednc" if values["classes"] and values.get("region_weight") else "fedavg"}
    return parse_run(
        {"seed": 1, "task": {"name": "colorize", **values}, "method": method, "train": TRAIN, **(tables or {})}
    )


def colour_task(tables: Mapping[str, Any] | None = None, **task: Any) -> ColourTask:
    """See `colour_run`."""
    found = discovery.get(colour_run(tables, **task))
    assert isinstance(found, ColourTask)
    return found


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers from a normal distribution."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
