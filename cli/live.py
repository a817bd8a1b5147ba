"""The live view of a run: tables of rounds and clients on a terminal, plain lines elsewhere.

Listens to the server's events and reads the list of nodes; changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from fednc.cli.output import as_text, console, say, time_left
from fednc.common.config.run import RunConfig
from fednc.common.tasks.metric_info import ACCURACY, MetricInfo
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import Node, NodeState
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, ModelInitialised, RoundCompleted, RunStarted
from fednc.server.storage.history import RoundRecord

_SHOWN_ROUNDS = 12
_REFRESH_PER_S = 4
_PACE_ROUNDS = 6
_BAR_WIDTH = 40


class TimeLeft:
    """How long the rest of a run takes, from the time between its last rounds: with evaluation and waiting."""

    def __init__(self, rounds: int) -> None:
        self._rounds, self._done = rounds, 0
        # (when, round) of the last rounds; the first round is not typical, because clients load their data in it
        self._ends: deque[tuple[float, int]] = deque(maxlen=_PACE_ROUNDS)

    def note(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, RoundCompleted):
            self._done = event.record.round
            self._ends.append((time.monotonic(), self._done))

    @property
    def share(self) -> float:
        """Of all rounds that are done."""
        return min(1.0, self._done / self._rounds) if self._rounds else 1.0

    @property
    def left(self) -> str:
        """`about 3 min left`; empty before the second round and after the last."""
        if len(self._ends) < 2 or self._done >= self._rounds:
            return ""
        (first_s, first), (last_s, last) = self._ends[0], self._ends[-1]
        if last <= first:
            return ""
        spent_s = time.monotonic() - last_s
        return time_left(max(0.0, (last_s - first_s) / (last - first) * (self._rounds - last) - spent_s))


class RunView:
    """The live view of one run."""

    def __init__(self, run: RunConfig) -> None:
        self._run = run
        self._rounds: list[RoundRecord] = []
        self._pace = TimeLeft(run.all_rounds)
        self._federation: Federation | None = None
        self._last = self._init = ""
        self._metric = ACCURACY  # that the run is judged by

    def watch(self, federation: Federation, port: int) -> None:
        """The server is listening; show its nodes."""
        del port
        self._federation = federation

    def note(self, event: Event) -> None:
        """Take in one event."""
        self._pace.note(event)
        if isinstance(event, RunStarted):
            self._metric = MetricInfo(**event.metric) if event.metric else ACCURACY
        elif isinstance(event, RoundCompleted):
            self._rounds.append(event.record)
        elif isinstance(event, ModelInitialised):
            self._init = event.text
        self._last = event.text

    def __rich__(self) -> Group:
        return Group(
            as_text(self._init),
            self._rounds_table(),
            self._progress(),
            as_text(self._classes_line()),
            self._clients_table(),
            as_text(self._last),
        )

    def _rounds_table(self) -> Table:
        done, total = len(self._rounds), self._run.all_rounds
        title = as_text(f"{self._run.method.name}: round {done} of {total}")
        table = Table(title=title, title_justify="left")
        for name in ("round", "loss", "test", "held out", "worst client", "drift", "replies", "seconds"):
            table.add_column(name, justify="right")
        for record in self._rounds[-_SHOWN_ROUNDS:]:
            table.add_row(*map(as_text, _round_cells(record, self._metric)))
        return table

    def _progress(self) -> Table:
        """A bar with the share of the rounds, and the time left."""
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=1.0, completed=self._pace.share, width=_BAR_WIDTH)
        line.add_row(bar, as_text(f"{100 * self._pace.share:.0f} %"), as_text(self._pace.left))
        return line

    def _classes_line(self) -> str:
        """The metric of each class in the last evaluated round: on test data, else pooled over the clients."""
        last = next((record for record in reversed(self._rounds) if record.test or record.pooled), None)
        if last is None:
            return ""
        metrics = last.test or last.pooled
        prefix = f"{self._metric.name}/"
        classes = [(key.removeprefix(prefix), value) for key, value in metrics.items() if key.startswith(prefix)]
        if not classes:
            return ""
        return "by class: " + ", ".join(f"{name} {self._metric.show(value, 0)}" for name, value in classes)

    def _clients_table(self) -> Table:
        table = Table(title="clients", title_justify="left")
        for name in ("name", "state", "part", "examples", "step", "loss", "examples/s", "MiB up", "MiB down"):
            table.add_column(name, justify="left" if name in ("name", "state") else "right")
        for node in self._federation.roster.nodes() if self._federation else []:
            table.add_row(*map(as_text, _client_cells(node)))
        return table


def _round_cells(record: RoundRecord, metric: MetricInfo) -> list[str]:
    worst = record.worst_client
    return [
        str(record.round),
        _number(record.loss, ".3f"),
        _value(record.test.get(metric.name), metric),
        _value(record.pooled.get(metric.name), metric),
        f"{worst['name']} {metric.show(worst[metric.name])}" if worst else "-",
        _number(record.drift, ".3f"),
        str(record.replies),
        f"{record.seconds:.1f}",
    ]


def _client_cells(node: Node) -> list[str]:
    at = node.progress
    silent_s = time.monotonic() - node.last_seen
    state = f"{node.state} ({silent_s:.0f} s)" if node.state is NodeState.LOST else node.problem or node.state
    return [
        node.name,
        state[:60],
        f"{node.part.index}/{node.part.of}" if node.part else "own",
        str(node.examples),
        f"{at.step}/{at.steps}" if at else "-",
        f"{at.loss:.3f}" if at else "-",
        f"{at.examples_per_s:,.0f}" if at else "-",
        f"{node.bytes_up / 2**20:.1f}",
        f"{node.bytes_down / 2**20:.1f}",
    ]


def _value(value: float | None, metric: MetricInfo) -> str:
    return "-" if value is None else metric.show(value)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_lines(events: EventLog, rounds: int = 0) -> None:
    """Print every event as a line; with `rounds`, that of a round says how long the rest takes."""
    _mute_log()
    pace = TimeLeft(rounds)

    def show(event: Event) -> None:
        pace.note(event)
        left = pace.left if isinstance(event, RoundCompleted) else ""
        say(f"{event.text}, {left}" if left else event.text)

    events.listen(show)


def _mute_log() -> None:
    """Hide the log: its lines are events, which are shown already."""
    log = logging.getLogger("fednc.server")
    log.propagate = False
    log.addHandler(logging.NullHandler())


@contextmanager
def following(run: RunConfig, events: EventLog) -> Iterator[RunView]:
    """Show the run while the block runs."""
    view = RunView(run)
    events.listen(view.note)
    if not console.is_terminal:
        print_lines(events, run.all_rounds)
        yield view
        return
    _mute_log()
    with Live(view, console=console, refresh_per_second=_REFRESH_PER_S):
        yield view
