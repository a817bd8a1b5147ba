"""Runs that follow one another over the same attending clients: no process, no connection, no data is loaded
again.

`serve_series` does it over the link, `RunSeries` over any grid that can go on to another run. A search uses it for
its trials. What decides which run comes next is the caller's; each run is as if it had been started alone, bit for
bit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fednc.common.config.run import RunConfig
from fednc.common.errors import DivergedError, QuorumError
from fednc.common.files import private_folder
from fednc.common.flower_adapter import SeriesGrid
from fednc.common.tasks import discovery
from fednc.server.access.setup import security_of
from fednc.server.link.federation import Federation
from fednc.server.link.grid import LinkGrid
from fednc.server.link.nodes import NodeState
from fednc.server.link.reply_schema import ReplySchema
from fednc.server.listener import serve
from fednc.server.main import Finished, expect_replies, link_summary, surroundings_of
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.result_files import summary_of, write_files
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.client_metrics import ClientMetrics
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, RoundCompleted
from fednc.server.storage.history import History

T = TypeVar("T")
Judge = Callable[[History], bool]  # after each round: whether the run goes on


def go_on(_history: History) -> bool:
    """Every run goes on to its last round."""
    return True


class RunSeries:
    """Runs one after another over one grid. Blocks, in the thread of the strategies."""

    def __init__(self, grid: SeriesGrid, control: RunControl | None = None) -> None:
        """An operator's commands in `control` hold for the whole series."""
        self._grid, self.control = grid, control or RunControl()

    @property
    def is_over(self) -> bool:
        """Whether no further run may begin."""
        return self.control.stop_wanted or self.control.closed

    def are_enough(self, run: RunConfig) -> bool:
        """Whether enough clients are there for this run."""
        del run
        return True

    def run(self, run: RunConfig, folder: Path, judge: Judge = go_on) -> Finished:
        """Do one run; its files are in `folder`, whose name is the run's id. A run that was cut off writes none.

        Values that are not finite are not counted against the client that sent them: these settings may be to
        blame, which are on trial themselves. It is left out of the round.

        Raises:
            ConfigError, DataError: the run cannot be used.
            DivergedError: as for every run, and where a round lacks replies because their values are not finite.
            QuorumError: as for every run. Another run may follow.
        """
        started, before = time.monotonic(), self._grid.traffic()
        self.control.next_run()
        diverged: dict[int, str] = {}
        private_folder(folder)
        events = EventLog(folder / "events.jsonl")
        try:
            prepared = FederatedRun(run, events)
            events.listen(partial(self._after, prepared, judge))
            self._grid.begin_run(folder.name, run)
            around = replace(
                self.around(prepared),
                client_metrics=ClientMetrics(folder),
                traffic=self._since(before),
                reject_values=lambda node, problem: diverged.update({node: problem}),
            )
            result = prepared.execute(self._grid, around)
            summary = self.summary(folder.name, result, time.monotonic() - started, self._since(before)())
            if not self.control.over:
                write_files(folder, result, summary)
        except QuorumError as e:
            if diverged:
                raise DivergedError(f"the model diverged at {len(diverged)} clients: {e}") from e
            raise
        finally:
            events.close()
        return Finished(folder, result, summary)

    def around(self, prepared: FederatedRun) -> Surroundings:
        """What this process offers to a run."""
        del prepared
        return Surroundings(name_of=self._grid.name_of, control=self.control)

    def summary(
        self, run_id: str, result: RunResult, duration_s: float, traffic: tuple[int, int]
    ) -> dict[str, Any]:
        """The content of `summary.json`."""
        up, down = traffic
        return summary_of(run_id, result, duration_s=round(duration_s, 3), bytes_up=up, bytes_down=down)

    def _since(self, before: tuple[int, int]) -> Callable[[], tuple[int, int]]:
        def traffic() -> tuple[int, int]:
            up, down = self._grid.traffic()
            return up - before[0], down - before[1]

        return traffic

    def _after(self, prepared: FederatedRun, judge: Judge, event: Event) -> None:
        if isinstance(event, RoundCompleted) and not judge(prepared.history):
            self.control.cut_off()


class LinkSeries(RunSeries):
    """Runs one after another over the link."""

    def __init__(self, grid: LinkGrid, control: RunControl) -> None:
        super().__init__(grid, control)
        self.link, self._between = grid, grid.run_id

    def are_enough(self, run: RunConfig) -> bool:
        """See RunSeries. They are asked again, as some may not have been able to take part in the run before."""
        federation = self.link.federation
        self.link.begin_run(self._between, run)
        return len(federation.roster.ready()) >= run.rounds.min_clients

    def around(self, prepared: FederatedRun) -> Surroundings:
        """See RunSeries. Raises QuorumError: too many of the clients that attend cannot take part in this run."""
        federation = self.link.federation
        expecting = partial(expect_replies, federation, prepared)
        expecting(prepared.state)
        _require_fit(federation)
        around = surroundings_of(federation, self.control, None, prepared.task)
        return replace(around, name_of=self.link.name_of, reject=self.link.reject, expect_replies=expecting)

    def summary(
        self, run_id: str, result: RunResult, duration_s: float, traffic: tuple[int, int]
    ) -> dict[str, Any]:
        """See RunSeries."""
        del run_id
        return link_summary(result, self.link.federation, duration_s, traffic)


def _require_fit(federation: Federation) -> None:
    """Waiting for clients is pointless if those that attend have said that they cannot take part."""
    unfit = [node for node in federation.roster.nodes() if node.state is NodeState.UNFIT]
    if unfit and len(federation.roster.ready()) < federation.run.rounds.min_clients:
        named = "; ".join(f"{node.name}: {node.problem}" for node in unfit[:5])
        raise QuorumError(f"{len(unfit)} clients cannot take part in this run: {named}")


async def serve_series(
    run: RunConfig,
    folder: Path,
    events: EventLog,
    work: Callable[[RunSeries], T],
    *,
    control: RunControl | None = None,
    on_listening: Callable[[Federation, int], None] = lambda _federation, _port: None,
) -> T:
    """Listen, let `work` do run after run over the clients that attend, and tell them when it is over.

    Until the first run begins, clients load the data of `run`, whose [server] counts for the whole series.

    Raises:
        AddressError, ConfigError, and what `work` raises.
    """
    control, address = control or RunControl(), run.server.listen
    security = security_of(run.server, address, events)
    shutil.rmtree(folder / "spool", ignore_errors=True)  # half-received uploads of a server that was killed
    federation = Federation(folder.name, run, folder / "spool", events)
    federation.expect(ReplySchema.of_declarations(discovery.get(run)))
    federation.door.keep_in(folder)
    federation.manifests.keep_in(folder)

    def listening(port: int) -> None:
        on_listening(federation, port)

    try:
        return await serve(
            federation,
            lambda grid: work(LinkSeries(grid, control)),
            address=address,
            security=security,
            control=control,
            on_listening=listening,
        )
    finally:
        shutil.rmtree(folder / "spool", ignore_errors=True)
