"""Watches for clients whose class means drift away from the memory, and says when that begins and ends.

The strategy passes it the class sums of each exchange as they arrive. An alarm is told and changes nothing else:
no client counts for less because of it. Knows no grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Self

from fednc.common.learning.class_memory import ClassSums
from fednc.common.learning.drift_alarm import ClientMeans, Deviation
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import ClientDrifts, DiskProblem, DriftOver

_SHOWN = 5  # classes in a message


class DriftWatch:
    """The alarms of one run.

    Attributes:
        alarms: in a few words, each alarm in force, by the client's name; not those of clients that ask not to be
            listed.
    """

    def __init__(self, rate: float, events: EventLog, name_of: Callable[[int], str]) -> None:
        """`rate`: the wanted probability of a false alarm, per client and exchange; 0: no alarms."""
        self._rate, self._events, self._name_of = rate, events, name_of
        self._alarmed: set[int] = set()
        self.alarms: dict[str, str] = {}

    @contextmanager
    def exchange(self, server_round: int, pool: ClassSums, class_names: Sequence[str]) -> Iterator[Exchange]:
        """One exchange, over all clients or some; alarms are told when the block ends without an error.

        Args:
            pool: sums like those that will come.
            class_names: of the run.
        """
        if not self._rate or pool.moment_DD is None:
            yield Exchange(None)
            return
        exchange = Exchange(None)
        try:
            exchange = Exchange(ClientMeans(*pool.sum_KD.shape))
        except OSError as e:  # no place for a temporary file
            exchange.problem = _said(e)
        with exchange:
            yield exchange
            found = exchange.deviations(self._rate)
        if exchange.problem:
            self._events.emit(DiskProblem(text=f"no drift alarms in round {server_round}: {exchange.problem}"))
            return
        self._tell(server_round, exchange, found, class_names)

    def _tell(
        self, server_round: int, exchange: Exchange, found: dict[int, Deviation], class_names: Sequence[str]
    ) -> None:
        for node in exchange.asked - exchange.named:
            self.alarms.pop(self._name_of(node), None)  # it may have been listed before
        for node in sorted(found, key=self._name_of):
            name = self._name_of(node) if node in exchange.named else ""
            event = _event(server_round, name, found[node], class_names)
            if name:
                self.alarms[name] = f"drift alarm: {event.times:.1f} times as far as usual"
            if node not in self._alarmed:
                self._events.emit(event)
        # If there are too many to be found, a client that is not among them may still be far away.
        over = set[int]() if exchange.is_cut else (self._alarmed & exchange.asked) - found.keys()
        for node in sorted(over, key=self._name_of):
            name = self._name_of(node) if node in exchange.named else ""
            self.alarms.pop(self._name_of(node), None)
            text = f"{name or _UNNAMED}: its class means are where those of the others are again"
            self._events.emit(DriftOver(text=text, node=name, round=server_round))
        self._alarmed = (self._alarmed - over) | found.keys()


class Exchange:
    """The sums of one exchange.

    A disk problem costs the alarms of this exchange and nothing else.

    Attributes:
        asked: clients that sent sums. named: those of them that may be listed by name.
        problem: of the disk; "" if there is none.
    """

    def __init__(self, means: ClientMeans | None) -> None:
        self._means = means
        self.asked: set[int] = set()
        self.named: set[int] = set()
        self.problem = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._means is not None:
            with suppress(OSError):  # closing writes what is still buffered
                self._means.close()

    def add(self, sums: ClassSums, node: int, *, is_named: bool) -> None:
        """Add the sums of one client."""
        if self._means is None or self.problem:
            return
        try:
            self._means.add(sums, node)
        except OSError as e:
            self.problem = _said(e)
        self.asked.add(node)
        if is_named:
            self.named.add(node)

    @property
    def is_cut(self) -> bool:
        """Whether more clients raise an alarm than `deviations` returned."""
        return self._means is not None and self._means.is_cut

    def deviations(self, rate: float) -> dict[int, Deviation]:
        """The clients that raise an alarm, by node."""
        if self._means is None or self.problem:
            return {}
        try:
            return {each.client: each for each in self._means.deviations(rate)}
        except OSError as e:
            self.problem = _said(e)
            return {}


def _said(error: OSError) -> str:
    return error.strerror or str(error)


_UNNAMED = "a client that asks not to be listed"


def _event(server_round: int, name: str, found: Deviation, class_names: Sequence[str]) -> ClientDrifts:
    times = math.sqrt(found.ratio)
    classes = tuple(class_names[number] for number in found.classes[:_SHOWN] if number < len(class_names))
    text = (
        f"{name or _UNNAMED}: its class means are {times:.1f} times as far from those of the others as usual "
        f"(chance {found.chance:.1g}), farthest in class {classes[0] if classes else '?'!r} "
        f"(cosine to the memory {found.cosine:.2f}). Has its data, camera or labelling changed?"
    )
    return ClientDrifts(
        text=text,
        node=name,
        round=server_round,
        times=times,
        chance=found.chance,
        cosine=found.cosine,
        classes=classes,
    )
