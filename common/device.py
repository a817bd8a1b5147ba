"""Chooses the device that a process computes on, from `--device`.

Called once when a command starts. Knows no model.
"""

from __future__ import annotations

import torch

from fednc.common.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device for `auto` (a GPU if there is one, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ConfigError(f"--device {name}: no such device; use auto, cpu or cuda:N") from e
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise ConfigError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices that PyTorch can use; "
            "use auto, cpu or cuda:N"
        )
    return device


def device_name(device: torch.device) -> str:
    """`cpu`, or the model name of the GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
