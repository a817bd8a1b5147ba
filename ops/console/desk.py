"""What this console looks at: a server, folders of runs, a model store, gates, pipelines, searches. One per
process.

The routes ask it, and it asks the rest of `ops`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fednc.common.errors import ConfigError, RefusedError
from fednc.common.security.signatures import Signer, Trust
from fednc.ops.approvals.box import CONSOLE, ApprovalBox, PendingRequest, Verdict
from fednc.ops.console.remembered import Remembered
from fednc.ops.console.run_log import RunLog
from fednc.ops.console.run_view import ShownRun
from fednc.ops.console.server_watch import ServerWatch
from fednc.ops.console.shelf import RunShelf
from fednc.ops.operator_client import OperatorLink
from fednc.ops.pipelines.journal import Journal, PipelineRun
from fednc.ops.registry.versions import VersionRow
from fednc.ops.run_folders.folder import RunFolder, State, is_held
from fednc.ops.search.study import SearchView
from fednc.protos import operator_pb2 as pb
from fednc.server.operations.commands import COMMANDS, Command, DropNode, ReadmitNode

_SHOWN_VERDICTS, _SHOWN_RUNS = 50, 20


@dataclass(frozen=True)
class Sights:
    """What a console shows; None or empty: nothing of the kind.

    Attributes:
        searches: storages of `fednc search`.
        signing: folder of `fednc certs server`, whose key signs verdicts that are given here.
    """

    server: OperatorLink | None = None
    runs: Sequence[Path] = ()
    store: str = ""
    approvals: Path | None = None
    pipelines: Path | None = None
    searches: Sequence[str] = ()
    signing: Path | None = None


@dataclass(frozen=True, kw_only=True)
class GateAnswer:
    """A person's answer to a gate.

    Attributes:
        request: sha256 of the request that the person saw; another one is refused.
        verdict: `approved` or `rejected`.
    """

    request: str
    digest: str
    subject: str
    verdict: str
    who: str
    reason: str


@dataclass(frozen=True)
class Gates:
    """What waits for a verdict, and the last verdicts, the newest first."""

    pending: Sequence[PendingRequest] = ()
    verdicts: Sequence[Verdict] = ()


@dataclass(frozen=True)
class PipelineState:
    """One pipeline: its runs, the newest first, and whether a process is at work on it."""

    name: str
    runs: Sequence[PipelineRun]
    is_at_work: bool


@dataclass
class ConsoleDesk:
    """Reads what the pages show, and passes on what an operator decides."""

    sights: Sights
    watch: ServerWatch | None = None
    shelf: RunShelf = field(init=False)
    models: Remembered[Sequence[VersionRow]] = field(init=False)
    gates: Remembered[Gates] = field(init=False)
    pipelines: Remembered[Sequence[PipelineState]] = field(init=False)
    searches: Remembered[Sequence[SearchView]] = field(init=False)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _heard: dict[str, RunLog] = field(default_factory=dict)  # of runs whose folder is not here

    def __post_init__(self) -> None:
        self.shelf = RunShelf(self.sights.runs)
        self.models = Remembered(self._read_models, (), for_s=5.0)
        self.gates = Remembered(self._read_gates, Gates())
        self.pipelines = Remembered(self._read_pipelines, ())
        self.searches = Remembered(self._read_searches, (), for_s=5.0)
        if self.sights.server is not None:
            self.watch = ServerWatch(self.sights.server, on_status=self._hear)

    def _hear(self, status: pb.RunStatus) -> None:
        if status.run_id not in self._heard:
            self._heard = {status.run_id: RunLog()}
        self._heard[status.run_id].hear(status)

    # ---- runs --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def run(self, name: str = "") -> AsyncIterator[ShownRun | None]:
        """A run while the block looks at it: the one of this name, or the one that is shown first.

        That is the run that the server serves; without a server the newest one. None: there is none. Files are
        read in a thread, because the first look at a long run takes seconds, and for one block at a time.
        """
        async with self._reading:
            runs = await asyncio.to_thread(self.shelf.runs)
            yield await (
                self._live() if self.watch is not None and not name else self._stored(name or _first(runs))
            )

    async def _live(self) -> ShownRun:
        assert self.watch is not None
        status, problem = self.watch.status, self.watch.problem
        if status is None:
            return ShownRun("", RunLog(), is_live=True, problem=problem)
        heard = self._heard[status.run_id]
        ref, folder = self.shelf.of_id(status.run_id)
        opened = await asyncio.to_thread(self.shelf.open, folder) if folder else None
        return ShownRun(
            status.run_id,
            opened.log if opened else heard,
            ref=ref,
            folder=folder,
            status=status,
            geometry=opened.geometry if opened else None,
            is_live=True,
            problem=problem,
            silent_s=self.watch.age_s,
            speeds=heard.speeds,
        )

    async def _stored(self, name: str) -> ShownRun | None:
        run = self.shelf.runs().get(name)
        if run is None:
            return None
        opened = await asyncio.to_thread(self.shelf.open, run.path)
        return ShownRun(
            name, opened.log, ref=name, folder=run.path, geometry=opened.geometry, stored=run, problem=run.problem
        )

    async def runs(self) -> dict[str, RunFolder]:
        """All runs by name, the newest first."""
        async with self._reading:
            return await asyncio.to_thread(self.shelf.runs)

    # ---- stores ------------------------------------------------------------------------------------------------

    def _read_models(self) -> Sequence[VersionRow]:
        from fednc.ops.registry.registry import ModelRegistry

        return ModelRegistry(self.sights.store).rows()[::-1]

    def _box(self) -> ApprovalBox:
        assert self.sights.approvals is not None
        signing = self.sights.signing
        return ApprovalBox(self.sights.approvals, Trust.from_folder(signing) if signing else None)

    def _read_gates(self) -> Gates:
        if self.sights.approvals is None:
            return Gates()
        box = self._box()
        return Gates(box.pending(), box.verdicts()[::-1][:_SHOWN_VERDICTS])

    def _read_pipelines(self) -> Sequence[PipelineState]:
        place = self.sights.pipelines
        folders = sorted(path for path in place.iterdir() if path.is_dir()) if place and place.is_dir() else []
        found = [
            PipelineState(path.name, Journal(path).runs()[::-1][:_SHOWN_RUNS], is_held(path)) for path in folders
        ]
        return [one for one in found if one.runs]

    def _read_searches(self) -> Sequence[SearchView]:
        from fednc.ops.search.study import read_studies

        return [view for url in self.sights.searches for view in read_studies(url)]

    # ---- what operators decide ----------------------------------------------------------------------------------

    async def tell(self, who: str, action: str, node: str = "") -> None:
        """Send a person's command to the server. Raises FedncError."""
        if self.watch is None:
            raise ConfigError("this console is not connected to a server: start it with --server HOST:PORT")
        await self.watch.ask(_command(action, node), who)

    async def decide(self, answer: GateAnswer) -> Verdict:
        """Answer a gate.

        Raises:
            FedncError: nothing waits for this digest any more, or the verdict cannot be recorded.
        """
        if self.sights.approvals is None:
            raise ConfigError("this console has no gates: start it with --approvals DIR")
        try:
            return await asyncio.to_thread(self._decide, answer)
        finally:
            self.gates.forget()

    def _decide(self, answer: GateAnswer) -> Verdict:
        box, signing = self._box(), self.sights.signing
        if answer.request not in {each.sha256 for each in box.pending()}:
            raise RefusedError("what you saw does not wait for a verdict any more: look at what waits now")
        return box.decide(
            answer.digest,
            answer.verdict,
            answer.who,
            answer.reason,
            Signer.from_folder(signing) if signing else None,
            how=CONSOLE if signing else "console without certificates",
            subject=answer.subject,
        )


def _first(runs: Mapping[str, RunFolder]) -> str:
    """The name of a run that goes on, else of the newest one; empty if there is none."""
    running = (name for name, run in runs.items() if run.state is State.RUNNING)
    return next(running, next(iter(runs), ""))


def _command(action: str, node: str) -> Command:
    kind = COMMANDS.get(action)
    if kind is None:
        raise ConfigError(f"there is no command {action!r:.40}")
    if kind in (DropNode, ReadmitNode):
        return kind(node)
    return kind()
