"""Carries a federated run on stock Flower's simulation engine: a SuperLink of its own, with Ray behind it.

The same apps as over our link, so the same bits; but nothing is kept until the run ends, and a run that was killed
begins anew. Needs the extra `flower-sim`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fednc.common.errors import AddressError, DataError, MissingExtraError, RunFailedError
from fednc.common.process.flower_env import quiet_flower
from fednc.common.toml_text import to_toml
from fednc.common.waiting import Deadline, wait_until
from fednc.ops.pipelines.child_process import die_with_parent
from fednc.ops.pipelines.work import RunOrder
from fednc.ops.run_folders.folder import EVENTS
from fednc.server.storage.events import event_of

_START_S, _LOOK_AGAIN_S = 60.0, 0.2
_LOG_CHARS = 1500  # of Flower's log, in an error
_FLOWER = "flower"  # folder of Flower's own files, in the run's folder
_HERE = "here"  # Flower's name of the connection
_BUNDLE = """[project]
name = "fednc"
version = "{version}"
description = "The apps of fednc."
license = "Apache-2.0"
dependencies = ["fednc"]

[tool.flwr.app]
publisher = "fednc"
fab-format-version = 0
fab-include = ["pyproject.toml"]

[tool.flwr.app.components]
serverapp = "fednc.server.flower_app:app"
clientapp = "fednc.client.app.flower_app:app"

[tool.flwr.app.config]
run = ""
clients = ""
folder = ""
"""


def on_flower(order: RunOrder) -> None:
    """Run it to its end. Raises MissingExtraError, RunFailedError, AddressError."""
    if find_spec("ray") is None:
        raise MissingExtraError("ray", "flower-sim", "on = 'simulation'")
    place = order.folder / _FLOWER
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    (order.folder / EVENTS).unlink(missing_ok=True)
    (place / "app").mkdir(parents=True)
    (place / "app" / "pyproject.toml").write_text(_BUNDLE.format(version=version("fednc")), encoding="utf-8")
    settings = {
        "run": order.run.model_dump_json(),
        "clients": json.dumps(dict(order.clients)),
        "folder": str(order.folder.resolve()),
    }
    (place / "run-config.toml").write_text(to_toml(settings), encoding="utf-8")
    with _superlink(order, place) as environment:
        _run(order, place, environment)
    shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _superlink(order: RunOrder, place: Path) -> Iterator[dict[str, str]]:
    """A SuperLink with the simulation engine, as a process group that ends with the block."""
    quiet_flower()
    port, table = _free_port(), order.file.simulation
    environment = {**os.environ, "FLWR_HOME": str(place.resolve()), "NO_COLOR": "1"}
    environment["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"  # it starts others
    )
    resources = {"num-cpus": table.cpus, "num-gpus": table.gpus}
    options = {"num-supernodes": len(order.clients), "backend": {"client-resources": resources}}
    here = {"address": f"127.0.0.1:{port}", "insecure": True, "options": options}
    text = to_toml({"superlink": {"default": _HERE, _HERE: here}})
    (place / "config.toml").write_text(text, encoding="utf-8")
    words = [_program("flower-superlink"), "--insecure", "--simulation", "--port", str(port)]
    with (place / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            die_with_parent(words), env=environment, cwd=place, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _await(process, port, place)
        yield environment
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(process: subprocess.Popen[bytes], port: int, place: Path) -> None:
    """Raises AddressError."""

    def is_up() -> bool:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
            return True
        return False

    wait_until(lambda: is_up() or process.poll() is not None, Deadline(_START_S), _LOOK_AGAIN_S)
    if process.poll() is not None or not is_up():
        raise AddressError(f"Flower's SuperLink did not start: {_tail(place / 'superlink.log')}")


def _run(order: RunOrder, place: Path, environment: Mapping[str, str]) -> None:
    """`flwr run` to its end; tells what happens. Raises RunFailedError."""
    words = [_program("flwr"), "run", "app", _HERE, "--stream", "-c", "run-config.toml"]
    events = _Events(order)

    def has_ended() -> bool:
        events.tell()
        return process.poll() is not None

    with (place / "run.log").open("wb") as log:
        process = subprocess.Popen(die_with_parent(words), env=environment, cwd=place, stdout=log, stderr=log)
    try:
        wait_until(has_ended, Deadline(3600 * order.file.simulation.timeout_h), _LOOK_AGAIN_S)
    finally:
        process.kill()
        process.wait()
    events.tell()
    if not (order.folder / "summary.json").exists():  # the exit code of `flwr run` is always 0
        raise RunFailedError(f"the run on Flower's simulation engine failed: {_tail(place / 'run.log')}")


class _Events:
    """The events of a run in another process, as they are written."""

    def __init__(self, order: RunOrder) -> None:
        self._order, self._read = order, 0

    def tell(self) -> None:
        """Tell those that are new."""
        with suppress(FileNotFoundError), (self._order.folder / EVENTS).open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read += len(line)
                with suppress(ValueError, DataError):
                    if event := event_of(json.loads(line)):
                        self._order.heard(event)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program(name: str) -> str:
    """A program that flwr installs: beside this Python, else wherever it is found."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def _tail(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")[-_LOG_CHARS:]
    return "it left no log"
