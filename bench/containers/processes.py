"""The processes of this machine as /proc shows them: what they run and which rights they have.

Used by `verify.py` and `chaos.py`, whose containers see all processes of the machine. Knows no container engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fednc.common.waiting import Deadline, wait_until

PROC = Path("/proc")
_POLL_S = 0.2


@dataclass(frozen=True)
class Process:
    """One process: its command line and its rights."""

    pid: int
    arguments: tuple[str, ...]
    uids: frozenset[int]  # real, effective, saved, file system
    capabilities: int  # effective
    may_gain: bool  # whether it can get more rights by starting another program
    in_container: bool  # runs in a PID namespace below the one of /proc

    def is_node(self, name: str) -> bool:
        """Whether this is the process of the server (`server`) or of the client with that name."""
        at = next((i for i, argument in enumerate(self.arguments) if Path(argument).name == "fednc"), None)
        if (
            at is None or at > 1 or not self.in_container
        ):  # later in the arguments it is the command of an init process
            return False
        role, *rest = self.arguments[at + 1 :] or [""]
        named = rest[rest.index("--name") + 1 :][:1] if "--name" in rest else []
        return role == name == "server" or (role == "client" and named == [name])


def running(proc: Path | None = None) -> Iterator[Process]:
    """All processes, without those that end in the meantime."""
    for folder in (proc or PROC).iterdir():
        if folder.name.isdecimal():
            try:
                yield _read(folder)
            except (FileNotFoundError, ProcessLookupError):
                continue


def find(name: str, proc: Path | None = None) -> Process | None:
    """The process of a node, if it is there."""
    return next((process for process in running(proc) if process.is_node(name)), None)


def await_node(name: str, deadline: Deadline, proc: Path | None = None) -> Process:
    """The process of a node, once there is one. Raises LookupError at the deadline."""
    found = wait_until(lambda: find(name, proc), deadline, _POLL_S)
    if found is None:
        raise LookupError(f"no container runs {name}")
    return found


def _read(folder: Path) -> Process:
    lines = (folder / "status").read_text().splitlines()
    status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    command = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    return Process(
        pid=int(folder.name),
        arguments=tuple(argument.decode(errors="replace") for argument in command),
        uids=frozenset(map(int, status["Uid"])),
        capabilities=int(status["CapEff"][0], 16),
        may_gain=status["NoNewPrivs"] != ["1"],
        in_container=len(status["NSpid"]) > 1,
    )
