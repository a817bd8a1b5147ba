"""Which device a process computes on: the one place where `--device` is read.

Called once at the start of a command. Knows no model.
"""

from __future__ import annotations

import torch

from fednc.common.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """`auto` (a GPU where there is one, else the CPU), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: no such device on this machine.
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
    """`cpu`, or what the GPU calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
