"""What the strategy takes from a reply, after a look at whether it can be true.

Every function raises ProtocolError for what no honest client sends. Must not know rounds.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, RecordDict

from fednc.common import arrays, exchange
from fednc.common.errors import ProtocolError
from fednc.common.memory import ClassSums, check_sums
from fednc.common.records import record_of
from fednc.common.stages import Stage
from fednc.common.tasks.base import Stats, Task


def sums_in(content: RecordDict, task: Task, stage: Stage) -> ClassSums:
    """The class sums of a reply; where classes come in sessions, of the stage's classes alone."""
    sums = exchange.sums_of(content)
    check_sums(sums, task.label_space, exchange.examples_of(content))
    held = sums.count_K.nonzero().flatten().tolist()
    if task.takes_sessions and held and not stage.earlier <= held[0] <= held[-1] < stage.classes:
        raise ProtocolError(f"class sums of classes that are not of stage {stage.number}")
    return sums


def stats_in(content: RecordDict, task: Task) -> Stats | None:
    """The statistics of a reply; None from a client that holds nothing out."""
    stats = arrays.from_record(record_of(content, exchange.STATS, ArrayRecord) or ArrayRecord())
    if not stats:
        return None
    exchange.check_stats(stats, task.no_statistics())
    return stats
