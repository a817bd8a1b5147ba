"""Weights that a run starts from (`task.weights`): reads the file, and fits its tensors to the model by name.

Only the server calls this. Safetensors and PyTorch's state dicts are read, the latter with `weights_only`, so that
opening a file runs none of its author's code. Knows no task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fednc.common.errors import ConfigError
from fednc.common.peer_text import one_line
from fednc.common.tasks import adapters

_SHOWN = 5  # names of one kind in an error
_NESTED = (
    "state_dict",
    "model_state_dict",
    "model",
    "state_dict_ema",
    "model_ema",
)  # where training scripts put it
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "encoder.")  # what wrappers put before each name
# Classifiers of the usual model families. Ours replaces them, so they may be missing here or have any size.
_HEADS = ("fc", "head", "head.fc", "heads", "heads.head", "classifier", "last_linear", "head_dist", "head.l")
_COUNTER = "num_batches_tracked"  # of batch normalisation; not used with a fixed momentum


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """(tensors of the file at `path` by name, sha256 of the file).

    Raises:
        ConfigError: it cannot be read, or holds anything but named tensors.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise ConfigError(f"task.weights: {path} cannot be read ({e.strerror}); give the path of a file") from e
    try:
        found = safetensors.torch.load(content) if path.suffix == ".safetensors" else _state_dict(path)
    except Exception as e:  # any error of a parser means the same here
        raise ConfigError(
            f"task.weights: {path} is neither safetensors (*.safetensors) nor a state dict that PyTorch reads "
            f"with weights_only ({one_line(e, 200)}). Save model.state_dict() with safetensors.torch.save_file."
        ) from e
    return found, hashlib.sha256(content).hexdigest()


def _state_dict(path: Path) -> dict[str, Tensor]:
    held: Any = torch.load(path, map_location="cpu", weights_only=True)
    for name in _NESTED:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping):
        raise TypeError(f"it holds a {type(held).__name__}, expected tensors by name")
    odd = [str(name) for name, value in held.items() if not isinstance(value, Tensor)]
    if odd or not held:
        raise TypeError(f"{odd[:_SHOWN] or 'it'} is not a tensor, expected tensors by name")
    return {str(name): value for name, value in held.items()}


def put(model: nn.Module, body: str, given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copy `given` into `model`, in place: into its body or, if more names fit, into the whole model.

    Returns:
        Notes for the user: what was loaded, and what was left out.

    Raises:
        ConfigError: a tensor is missing, is not one of the model's, or has another shape.
    """
    state = model.state_dict()  # shares memory with the model
    whole = {adapters.plain_name(key): value for key, value in state.items() if not adapters.is_adapter(key)}
    inside = {key.removeprefix(body): value for key, value in whole.items() if key.startswith(body)}
    fits = [(target, names) for names in _readings(given) for target in (inside, whole)]
    target, named = max(fits, key=lambda pair: 2 * len(pair[0].keys() & pair[1].keys()) - len(pair[0]))
    elsewhere = len(given) - len(named)
    named, dropped = _without_head(named, target)
    _check(target, named, dropped)
    with torch.no_grad():
        for key, value in named.items():
            target[key].copy_(value)
    notes = [f"{len(named)} tensors loaded, {sum(v.numel() for v in named.values()):,} values"]
    if dropped:
        notes.append(f"left out the classifier in the file, which the run replaces: {', '.join(dropped[:_SHOWN])}")
    if elsewhere:
        notes.append(f"left out {elsewhere} tensors of other parts of the file's model")
    return tuple(notes)


def _readings(given: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors under their names, and without the prefixes that wrappers add."""
    found, names = [dict(given)], dict(given)
    for _ in range(len(_PREFIXES)):
        prefix = next((each for each in _PREFIXES if any(name.startswith(each) for name in names)), "")
        if not prefix:
            break
        names = {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}
        found.append(names)
    return found


def _without_head(
    named: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """(the tensors without those of a classifier that the model has not, or has in another size; their names)."""
    dropped = [
        name
        for name, value in named.items()
        if name.rpartition(".")[0] in _HEADS and (name not in target or target[name].shape != value.shape)
    ]
    return {name: value for name, value in named.items() if name not in dropped}, dropped


def _check(target: Mapping[str, Tensor], named: Mapping[str, Tensor], dropped: Collection[str]) -> None:
    """Raises ConfigError unless `named` has all of `target` but the dropped, finite and of the same shapes."""
    missing = [
        name for name in target if name not in named and name not in dropped and not name.endswith(_COUNTER)
    ]
    unexpected = [name for name in named if name not in target]
    other = [
        f"{name} is {list(value.shape)}, expected {list(target[name].shape)}"
        for name, value in named.items()
        if name in target and value.shape != target[name].shape
    ]
    problems = [
        _listed("missing", missing),
        _listed("not in the model", unexpected),
        _listed("of another shape", other),
    ]
    if any(problems):
        raise ConfigError(
            f"task.weights does not fit the model: {'; '.join(filter(None, problems))}. Of {len(target)} tensors "
            f"{len(target.keys() & named.keys())} have a name in the file. Choose the model that the weights were "
            "made with (task.model, width, norm, channels), or rename the tensors."
        )
    bad = [name for name, value in named.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise ConfigError(f"task.weights has values that are not finite in {', '.join(bad[:_SHOWN])}")


def _listed(what: str, names: Collection[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(list(names)[:_SHOWN])}{more})"
