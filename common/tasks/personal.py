"""What a client reports about the models that it makes for itself after the last round (`[personal]`).

Statistics of the same held-out examples, read out in up to three ways. Server and client agree on the form here.
Knows no round.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fednc.common.errors import ProtocolError
from fednc.common.tasks.api import Task
from fednc.common.tasks.metrics import EXAMPLES, Stats

BEFORE = "before"  # the final model
BLENDED = "blended"  # the same, read out by the client's own class memory blended with the global one
AFTER = "after"  # fine-tuned


def ways(task: Task) -> tuple[str, ...]:
    """The ways in which this run's clients read out; `BLENDED` needs a read-out from the class memory."""
    return (BEFORE, BLENDED, AFTER) if task.run.method.reads_memory else (BEFORE, AFTER)


def no_statistics(task: Task) -> Stats:
    """The report about no examples."""
    return together({way: task.no_statistics() for way in ways(task)})


def together(found: Mapping[str, Mapping[str, Tensor]]) -> Stats:
    """Statistics by way, as one set with the way in each name."""
    return {f"{way}/{name}": value for way, stats in found.items() for name, value in stats.items()}


def apart(stats: Mapping[str, Tensor], task: Task) -> dict[str, Stats]:
    """The reverse of `together`."""
    found: dict[str, Stats] = {way: {} for way in ways(task)}
    for key, value in stats.items():
        way, _, name = key.partition("/")
        found[way][name] = value
    return found


def check(stats: Mapping[str, Tensor], task: Task, announced: int) -> bool:
    """Check a report whose names, types and shapes fit. Returns whether it is about any examples.

    Raises:
        ProtocolError: no set of `announced` held-out examples can have these statistics.
    """
    found = apart(stats, task)
    have = [task.check_statistics(one, announced) for one in found.values()]
    if len({int(one[EXAMPLES]) for one in found.values()}) != 1:
        raise ProtocolError("the statistics contradict each other: before and after are over other examples")
    return all(have)
