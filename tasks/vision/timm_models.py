"""Models of timm (`task.model = "timm:NAME"`): built by name, never with weights from the network.

timm needs torchvision; both are installed with the extra `timm` and imported here when a run first names such a
model. Only names of timm's own registry are taken: `hf-hub:` and `local-dir:`, with which timm would fetch or read
files, are not. Knows no run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import nn

from fednc.common.errors import ConfigError, MissingExtraError

PREFIX = "timm:"
NAME = r"timm:[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?"  # a tag after the point chooses timm's size, mean and deviation


@dataclass(frozen=True)
class Inputs:
    """What inputs a model was made for: size in pixels, mean and deviation of each colour."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_timm(model: str) -> bool:
    """Whether a value of `task.model` names a model of timm."""
    return model.startswith(PREFIX)


def inputs_of(model: str, channels: int) -> Inputs:
    """The inputs that timm documents for a model. Raises ConfigError, MissingExtraError."""
    config = _config(model)
    mean, std = tuple(config.mean), tuple(config.std)
    if channels == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return Inputs(size=int(config.input_size[-1]), mean=mean, std=std)


def build(model: str, channels: int, size: int) -> tuple[nn.Module, int]:
    """(the model without its classifier, width of its features), initialised from torch's global generator.

    Raises:
        MissingExtraError: timm, or the torchvision that it needs, is not installed.
        ConfigError: timm has no such model, or cannot build it for such images.
    """
    config = _config(model)
    sized = {"img_size": size} if config.fixed_input_size else {}
    try:
        made = _timm().create_model(
            _name(model), pretrained=False, num_classes=0, in_chans=channels, scriptable=False, **sized
        )
    except Exception as e:  # other people's code may raise anything
        raise ConfigError(
            f"task.model: timm cannot build {_name(model)!r} for {channels} x {size} x {size} images "
            f"({type(e).__name__}: {e}). Set task.size and task.channels to what it supports."
        ) from e
    width = int(getattr(made, "head_hidden_size", 0) or made.num_features)
    return made.to(memory_format=torch.channels_last), width


@lru_cache(maxsize=64)
def width_of(model: str, channels: int, size: int) -> int:
    """Width of a model's features; leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        return build(model, channels, size)[1]


def _name(model: str) -> str:
    return model.removeprefix(PREFIX)


def _config(model: str) -> Any:
    timm, name = _timm(), _name(model)
    if not re.fullmatch(NAME, model) or not timm.is_model(name):
        similar = get_close_matches(name.partition(".")[0], timm.list_models(), 5)
        hint = f"; similar names: {', '.join(similar)}" if similar else ""
        raise ConfigError(f"task.model: timm {timm.__version__} has no model called {name!r}{hint}")
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise ConfigError(f"task.model: timm {timm.__version__} does not say what inputs {name!r} needs")
    return config


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError as e:
        raise MissingExtraError(f"timm with torchvision ({e})", "timm", "task.model on this machine") from e
