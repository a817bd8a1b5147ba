"""`fednc bench link --against flower`: the same no-op ClientApp on stock flwr with its default flags.

Starts a SuperLink, one SuperNode per client and `flwr run` on loopback, in a temporary folder, and ends them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from fednc.bench.link.driver import Row, Say, Settings, row
from fednc.common.errors import RunFailedError
from fednc.common.process.flower_env import quiet_flower
from fednc.common.waiting import Deadline, wait_until

_MOST_ROUNDS = 5  # after the warm-up: a stock round takes seconds
_START_S, _RUN_S = 60.0, 1800.0
_POLL_S = 0.2
_BUNDLE = """\
[project]
name = "fednc-bench"
version = "0.1.0"
description = "The no-op app of fednc bench"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fednc"

[tool.flwr.app.components]
serverapp = "fednc.bench.link.stock_flower_app:app"
clientapp = "fednc.bench.link.noop_app:app"

[tool.flwr.app.config]
"""


def measure(settings: Settings, ours: Row, say: Say) -> Row:
    """One row on stock flwr. Raises RunFailedError with the logs if the run does not finish."""
    del ours  # the app itself decides what is sent
    with tempfile.TemporaryDirectory(prefix="fednc-bench-") as name, _installation(Path(name), settings) as env:
        _run(Path(name), env)
        out = Path(name, "figures.json")
        if not out.exists():
            raise RunFailedError(f"stock Flower ended without results:\n{_logs(Path(name))}")
        measured = json.loads(out.read_text(encoding="utf-8"))
    measured["round_s"] = measured["round_s"][settings.warmup :]
    measured |= {"connections": None, "bytes_up": None, "bytes_down": None}  # not counted by stock Flower
    result = row("flower", settings, measured, [])
    say(f"flwr: {settings.params:,} parameters x {settings.clients} clients: {result['round_s']:.3f} s per round")
    return result


@contextlib.contextmanager
def _installation(folder: Path, settings: Settings) -> Iterator[dict[str, str]]:
    """Run a SuperLink and SuperNodes. Yields the environment for `flwr run`."""
    quiet_flower()
    home, port = folder / "home", _free_port()
    env = {
        **os.environ,
        "FLWR_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    home.mkdir()
    home.joinpath("config.toml").write_text(
        f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    _write_bundle(folder, settings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_process(folder, env, "flower-superlink", "--insecure", "--port", str(port)))
        _await_health(port, folder)
        for index in range(settings.clients):
            stack.enter_context(
                _process(
                    folder,
                    env,
                    "flower-supernode",
                    "--insecure",
                    "--superlink",
                    f"127.0.0.1:{port}",
                    "--port",
                    str(_free_port()),
                    "--node-config",
                    f"partition-id={index}",
                )
            )
        yield env


def _write_bundle(folder: Path, settings: Settings) -> None:
    bundle = folder / "fednc-bench"
    bundle.mkdir()
    rounds = settings.warmup + min(settings.rounds, _MOST_ROUNDS)
    values = {"params": settings.params, "clients": settings.clients, "rounds": rounds}
    values_toml = "".join(f"{key} = {value}\n" for key, value in values.items())
    out = json.dumps(str(folder / "figures.json"))
    bundle.joinpath("pyproject.toml").write_text(f"{_BUNDLE}{values_toml}out = {out}\n", encoding="utf-8")


@contextlib.contextmanager
def _process(folder: Path, env: dict[str, str], program: str, *arguments: str) -> Iterator[None]:
    """Run a program in its own process group, and kill it with its children at the end of the block."""
    path = Path(sys.executable).parent / program
    with folder.joinpath(f"{program}.log").open("ab") as log:
        process = subprocess.Popen(
            [path, *arguments],
            env=env,
            cwd=folder,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _run(folder: Path, env: dict[str, str]) -> None:
    command = [str(Path(sys.executable).parent / "flwr"), "run", str(folder / "fednc-bench"), "lab", "--stream"]
    with folder.joinpath("flwr-run.log").open("ab") as log:
        subprocess.run(command, env=env, cwd=folder, stdout=log, stderr=log, timeout=_RUN_S, check=False)


def _await_health(port: int, folder: Path) -> None:
    def answers() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
            return True
        return False

    if not wait_until(answers, Deadline(_START_S), _POLL_S):
        raise RunFailedError(f"the SuperLink did not answer within {_START_S:g} s:\n{_logs(folder)}")


def _logs(folder: Path) -> str:
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("*.log")))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
