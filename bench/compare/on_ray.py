"""Carries the trainings of a comparison on Ray: on this machine, or on the cluster that RAY_ADDRESS names.

Ray comes with Flower's simulation engine (extra `flower-sim`). Each training is one task with one thread. Its data
travels with it, and its rows come back, so the machines of a cluster need fednc but no shared folder. Called by
`rows.py`; knows nothing about a training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fednc.bench.compare.plan import Row
from fednc.bench.compare.prepared_data import Prepared
from fednc.bench.compare.run_archive import Result
from fednc.common.errors import ConfigError, FedncError, MissingExtraError, RunFailedError

ADDRESS = "RAY_ADDRESS"  # Ray's own variable; unset: a Ray of this process, which ends with it
Work = Callable[[Sequence[Row], Prepared], list[Result]]
# Ray reports its use to its makers, and warns that it hides GPUs from tasks that ask for none.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_PACKAGES = "fednc", "flwr", "numpy", "torch"  # other versions may round in another way


def on_ray(
    trainings: Sequence[Sequence[Row]], work: Work, data: Prepared, *, here: int, gpu: bool
) -> Iterator[list[Result]]:
    """What `work` gives for each training, as they end. All of them are stopped if one fails.

    Args:
        work: a function of fednc; it is called on another machine by its name.
        here: trainings at a time if Ray is started on this machine. A cluster decides by its CPUs and GPUs.
        gpu: whether a training takes a whole GPU.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: there is no such cluster, or it has other versions of the packages.
        RunFailedError: Ray could not start here, or not carry out a training.
    """
    if find_spec("ray") is None:
        raise MissingExtraError("ray", "flower-sim", "--engine ray")
    import ray

    _start(ray, here)
    try:
        files = ray.put({path.name: path.read_bytes() for path in data.files})
        task = ray.remote(_carry).options(num_cpus=1, num_gpus=int(gpu))
        open_ = [task.remote(rows, work, data, files, _versions()) for rows in trainings]
        while open_:
            (done, *_), open_ = ray.wait(open_)
            yield _result(ray, done)
    finally:
        ray.shutdown()


def _start(ray: Any, here: int) -> None:
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    address = os.environ.get(ADDRESS, "")
    size = {} if address else {"num_cpus": here, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **size)
    except Exception as e:  # Ray raises any type, also a bare Exception where a slow machine starts it too late
        if not address:
            raise RunFailedError(f"Ray could not be started on this machine: {e}") from e
        raise ConfigError(
            f"{ADDRESS} = {address!r}: no Ray cluster can be reached there ({e}); start one with "
            "`ray start --head`, or leave the variable out to use this machine"
        ) from e


def _result(ray: Any, done: Any) -> list[Result]:
    try:
        found: list[Result] = ray.get(done)
    except ray.exceptions.RayTaskError as e:
        if isinstance(e.cause, FedncError):
            raise e.cause from None
        raise RunFailedError(f"a training failed on Ray: {e.cause!r}; finished rows are kept") from e
    except ray.exceptions.RayError as e:
        raise RunFailedError(f"Ray lost a training: {e}; start again, finished rows are kept") from e
    return found


def _carry(
    rows: Sequence[Row], work: Work, data: Prepared, files: dict[str, bytes], versions: dict[str, str]
) -> list[Result]:
    """One training, in a process of Ray."""
    if versions != _versions():
        raise ConfigError(f"a machine of the cluster has {_versions()}, but this one {versions}: install the same")
    with TemporaryDirectory(prefix="fednc-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return work(rows, data.moved(Path(folder)))


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}
