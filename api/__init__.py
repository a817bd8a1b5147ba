"""The public API of `import fednc`. This folder is the package `fednc`; the other floors are its subpackages.

    result = fednc.run("run.toml", clients={"anna": "npz:anna.npz", "bert": "npz:bert.npz"})
    model = fednc.load("runs/digits-20260101-120000")

Everything is imported on first use, so that `import fednc` is fast and loads neither torch nor flwr.

pyproject.toml maps this folder (`"fednc" = "api"`), because a folder called `fednc` in the checkout would hide the
installed package when Python is started there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fednc.callbacks import BestCheckpoint, Callback, EarlyStop, Progress
    from fednc.common.model_export import load
    from fednc.in_process import Result, Running, run

    __version__: str

_HOMES = {
    "BestCheckpoint": "fednc.callbacks",
    "Callback": "fednc.callbacks",
    "EarlyStop": "fednc.callbacks",
    "Progress": "fednc.callbacks",
    "Result": "fednc.in_process",
    "Running": "fednc.in_process",
    "load": "fednc.common.model_export",
    "run": "fednc.in_process",
}

__all__ = [
    "BestCheckpoint",
    "Callback",
    "EarlyStop",
    "Progress",
    "Result",
    "Running",
    "__version__",
    "load",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import the object called `name`."""
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("fednc")
    if name not in _HOMES:
        raise AttributeError(f"module 'fednc' has no attribute {name!r}; available: {', '.join(__all__)}")
    from fednc.common.process.flower_env import quiet_flower

    quiet_flower()  # before anything imports flwr
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
