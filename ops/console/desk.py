"""What this console looks at: a server, folders of runs, a model store, searches, approvals. One object per process.

The routes ask it, and it asks the rest of `ops`. Slow stores are asked in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fednc.common.errors import ConfigError
from fednc.ops.console.geometry import Geometry
from fednc.ops.console.run_log import RunLog
from fednc.ops.console.run_view import RunView
from fednc.ops.console.server_watch import ServerWatch
from fednc.ops.console.shelf import RunShelf
from fednc.ops.operator_client import OperatorLink
from fednc.ops.run_folders.folder import State
from fednc.protos import operator_pb2 as pb
from fednc.server.operations.commands import COMMANDS, Command, DropNode, ReadmitNode


@dataclass(frozen=True)
class Sights:
    """What a console shows; None or empty: nothing of the kind."""

    server: OperatorLink | None = None
    runs: Sequence[Path] = ()
    store: str = ""


@dataclass
class Desk:
    """Reads what the pages show."""

    sights: Sights
    watch: ServerWatch | None = None
    shelf: RunShelf = field(init=False)
    _heard: dict[str, RunLog] = field(default_factory=dict)  # of runs whose folder is not here

    def __post_init__(self) -> None:
        self.shelf = RunShelf(self.sights.runs)
        if self.sights.server is not None:
            self.watch = ServerWatch(self.sights.server, on_status=self._hear)

    def _hear(self, status: pb.RunStatus) -> None:
        if status.run_id not in self._heard:
            self._heard = {status.run_id: RunLog()}
        self._heard[status.run_id].hear(status)

    # ---- runs --------------------------------------------------------------------------------------------------

    def current(self) -> RunView | None:
        """The run that the server serves; without a server the newest one. None: there is none."""
        if self.watch is not None:
            return self._live()
        runs = self.shelf.runs()
        running = [name for name, run in runs.items() if run.state is State.RUNNING]
        name = next(iter(running or runs), None)
        return self.stored(name) if name is not None else None

    def _live(self) -> RunView:
        assert self.watch is not None
        status, problem = self.watch.status, self.watch.problem
        if status is None:
            return RunView("", RunLog(), is_live=True, problem=problem)
        folder = self.shelf.folder_of_id(status.run_id)
        opened = self.shelf.open(folder) if folder else None
        return RunView(
            status.run_id,
            opened.log if opened else self._heard[status.run_id],
            ref=self._ref(folder),
            folder=folder,
            status=status,
            geometry=opened.geometry if opened else None,
            is_live=True,
            problem=problem,
            silent_s=self.watch.age_s,
        )

    def _ref(self, folder: Path | None) -> str:
        return next((name for name, run in self.shelf.runs().items() if run.path == folder), "")

    def stored(self, name: str) -> RunView | None:
        """A run from its folder."""
        run = self.shelf.runs().get(name)
        if run is None:
            return None
        opened = self.shelf.open(run.path)
        geometry: Geometry = opened.geometry
        return RunView(
            name, opened.log, ref=name, folder=run.path, geometry=geometry, stored=run, problem=run.problem
        )

    # ---- commands ----------------------------------------------------------------------------------------------

    async def tell(self, action: str, node: str = "") -> None:
        """Send an operator's command to the server. Raises FedncError."""
        if self.watch is None:
            raise ConfigError("this console is not connected to a server: start it with --server HOST:PORT")
        await self.watch.ask(_command(action, node))


def _command(action: str, node: str) -> Command:
    kind = COMMANDS.get(action)
    if kind is None:
        raise ConfigError(f"there is no command {action!r:.40}")
    if kind in (DropNode, ReadmitNode):
        return kind(node)  # type: ignore[call-arg]
    return kind()
