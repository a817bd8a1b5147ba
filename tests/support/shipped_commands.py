"""The shipped commands on loopback for one test: `fednc server` and its clients, each in its own process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.stock_flower import BIN, environment

_START_S, _END_S = 60.0, 120.0


@dataclass
class OurLink:
    """A listening server that clients join one by one."""

    folder: Path
    server: subprocess.Popen[bytes]
    port: int = 0
    clients: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def join(self, name: str, *arguments: str) -> None:
        """`fednc client --once` with these arguments."""
        server = f"127.0.0.1:{self.port}"
        command = ["client", "--server", server, "--name", name, "--once", *arguments]
        self.clients.append(start(self.folder, name, command))

    def finish(self, code: int = 0) -> list[dict[str, object]]:
        """Wait for the server to end; return its events."""
        assert self.server.wait(_END_S) == code, self.logs()
        return self.events()

    def events(self) -> list[dict[str, object]]:
        path = self.folder / "run" / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def await_port(self) -> None:
        give_up = time.monotonic() + _START_S
        while not self.port:
            assert self.server.poll() is None, self.logs()
            assert time.monotonic() < give_up, self.logs()
            time.sleep(0.05)
            self.port = next((int(e["port"]) for e in self.events() if e["kind"] == "listening"), 0)  # type: ignore[call-overload]

    def logs(self) -> str:
        """The output of every process."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in self.folder.glob("*.log"))


def start(folder: Path, log: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    with (folder / f"{log}.log").open("ab") as out:
        return subprocess.Popen(
            [BIN / "fednc", *arguments],
            env=environment(folder / "home"),
            cwd=folder,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
        )


@contextlib.contextmanager
def our_link(folder: Path, *arguments: str) -> Iterator[OurLink]:
    """`fednc server` with these arguments in `folder`/run, and clients that end with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    place = str(folder / "run")
    server = start(folder, "server", ["server", *arguments, "--folder", place, "--listen", "127.0.0.1:0"])
    link = OurLink(folder, server)
    try:
        link.await_port()
        yield link
    finally:
        for process in [server, *link.clients]:
            process.kill()
            process.wait()
