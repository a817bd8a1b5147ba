"""The product and plug-ins as wheels, in a virtual environment of their own; their commands as processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "examples" / "plugins"
_LEFT_OUT = shutil.ignore_patterns("*.egg-info", "build", "__pycache__", ".venv*", ".types", "results", ".git")

_BETWEEN = "--- the next command\n"
_IN_ONE_PROCESS = f"""
import json, sys
from fednc.cli.main import app
for words in json.loads(sys.argv[1]):
    for stream in (sys.stdout, sys.stderr):
        print({_BETWEEN!r}, end="", file=stream, flush=True)
    app(words, standalone_mode=False)
"""


def build_wheel(project: Path, folder: Path) -> Path:
    """A wheel of `project`, built in a copy: setuptools writes beside the sources."""
    copy = folder / f"source-{project.name}"
    shutil.copytree(project, copy, ignore=_LEFT_OUT)
    return build_in(copy, folder)


def build_in(copy: Path, folder: Path) -> Path:
    program = "import setuptools.build_meta as backend, sys; print(backend.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


class Installed:
    """A fresh virtual environment; what the product needs comes from the environment that runs the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        (site,) = (folder / "lib").glob("python*/site-packages")
        # As plain paths: the .pth files in them, such as that of an editable install, are not read.
        (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))

    def install(self, *wheels: Path) -> None:
        words = ["install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", "--no-compile"]
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *words, *map(str, wheels)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def start(self, folder: Path, log: str, *arguments: object) -> subprocess.Popen[bytes]:
        """`fednc` with these arguments; its output goes to `folder`/`log`.log."""
        with (folder / f"{log}.log").open("ab") as out:
            return subprocess.Popen(
                [self.folder / "bin" / "fednc", *map(str, arguments)],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def fednc(self, folder: Path, *commands: Sequence[object]) -> list[str]:
        """Run these commands one after the other to their ends; what each said.

        In one process of this environment, because loading PyTorch takes longer than most commands.
        """
        words = [list(map(str, command)) for command in commands]
        done = subprocess.run(
            [self.python, "-c", _IN_ONE_PROCESS, json.dumps(words)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (words, done.returncode, done.stdout + done.stderr)
        streams = [stream.split(_BETWEEN)[1:] for stream in (done.stdout, done.stderr)]
        return [out + err for out, err in zip(*streams, strict=True)]


class Federation:
    """A server and its clients over mTLS, each a process of its own."""

    def __init__(self, server: Installed, folder: Path, names: Sequence[str]) -> None:
        folder.mkdir(parents=True)
        self._server, self.folder = server, folder
        self._processes: list[subprocess.Popen[bytes]] = []
        nodes = [("certs", "node", "ca", name) for name in names]
        ours = ("certs", "server", "ca", "--host", "127.0.0.1")
        server.fednc(folder, ("certs", "init", "ca"), ours, *nodes)
        self._certs = {name: folder / "ca" / "nodes" / name for name in names}
        self.port = 0

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def serve(self, run_file: Path) -> subprocess.Popen[bytes]:
        listen = ("--listen", f"127.0.0.1:{self.port}", "--certs", "ca/server", "--folder", "run")
        server = self._server.start(self.folder, "server", "server", run_file, *listen)
        self._processes.append(server)
        wait_for(lambda: self._listening() or server.poll() is not None, self.logs)
        assert self.port, self.logs()
        return server

    def _listening(self) -> int:
        self.port = next((int(event["port"]) for event in self.events() if event["kind"] == "listening"), 0)
        return self.port

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "run" / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def join(self, name: str, data: str, *more: object, installed: Installed | None = None) -> Any:
        server = ("--server", f"127.0.0.1:{self.port}", "--certs", self._certs[name])
        words = ("client", *server, "--data", data, "--once", "--device", "cpu", *more)
        client = (installed or self._server).start(self.folder, name, *words)
        self._processes.append(client)
        return client

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in self.folder.glob("*.log"))


def wait_for(condition: Callable[[], Any], logs: Callable[[], str], timeout_s: float = 60) -> Any:
    give_up = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < give_up, logs()
        time.sleep(0.05)
    return value
