"""Reads class sums and statistics from replies and checks that they are plausible.

Raises ProtocolError for content that no honest client sends. Must not know rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import Tensor

from fednc.common.errors import ProtocolError
from fednc.common.learning.class_memory import ClassSums, check_sums
from fednc.common.tasks import personal, probe, temperature
from fednc.common.tasks.api import Task
from fednc.common.tasks.classifier import classifier
from fednc.common.tasks.metrics import Stats
from fednc.common.tasks.stages import Stage
from fednc.common.wire import arrays, messages
from fednc.common.wire.records import record_of


def sums_in(
    content: RecordDict, task: Task, stage: Stage, announced_K: Sequence[int], like: ClassSums
) -> ClassSums:
    """The class sums of a reply. In a run with sessions they may cover only classes of the stage.

    Args:
        announced_K: examples of each class that the node announced.
        like: sums of the form that was asked for. Our link refuses others sooner, by its schema; stock Flower's
            does not.
    """
    sums = messages.sums_of(content)
    if _form(sums) != _form(like):
        raise ProtocolError(f"the reply has class sums of the form {_form(sums)} instead of {_form(like)}")
    check_sums(sums, task.label_space, announced_K)
    classifier(task).check_class_sums(sums.sum_KD, sums.count_K)
    held = sums.count_K.nonzero().flatten().tolist()
    if task.takes_sessions and held and not stage.earlier <= held[0] <= held[-1] < stage.classes:
        raise ProtocolError(f"the reply has class sums of classes that are not in stage {stage.number}")
    return sums


def _form(sums: ClassSums) -> dict[str, list[int]]:
    """Shapes by name; dtypes are checked where sums are read."""
    return {name: list(value.shape) for name, value in vars(sums).items() if isinstance(value, Tensor)}


def stats_in(content: RecordDict, task: Task, announced: int) -> Stats | None:
    """The statistics of a reply; None if the client holds no examples out.

    Args:
        announced: held-out examples that the node announced.
    """
    stats = arrays.from_record(record_of(content, messages.STATS, ArrayRecord) or ArrayRecord())
    if not stats:
        return None
    messages.check_stats(stats, task.no_statistics())
    return stats if task.check_statistics(stats, announced) else None


def losses_in(content: RecordDict, announced: int) -> Stats | None:
    """The losses of a reply at each temperature; None if the client holds no examples out."""
    sums = arrays.from_record(record_of(content, messages.STATS, ArrayRecord) or ArrayRecord())
    if not sums:
        return None
    messages.check_stats(sums, temperature.no_losses())
    temperature.check_losses(sums, announced)
    return sums if int(sums[temperature.ROWS]) else None


def personal_in(content: RecordDict, task: Task, announced: int) -> Stats | None:
    """What a reply says about a client's personal model; None if the client holds no examples out."""
    stats = arrays.from_record(record_of(content, messages.STATS, ArrayRecord) or ArrayRecord())
    if not stats:
        return None
    messages.check_stats(stats, personal.no_statistics(task))
    return stats if personal.check(stats, task, announced) else None


def is_named(content: RecordDict) -> bool:
    """Whether the client's own metrics may be listed by its name."""
    return not (record_of(content, messages.METRICS, MetricRecord) or MetricRecord()).get(messages.UNNAMED)


def data_sums_in(content: RecordDict, task: Task, announced: int) -> Stats | None:
    """The sums of the data of a reply; None from a client that withholds them.

    Args:
        announced: training examples that the node said it holds.
    """
    examples = messages.examples_of(content)
    if not 0 <= examples <= announced:
        raise ProtocolError(f"declares {examples} examples, but {announced} were announced")
    sums = messages.data_of(content, task.no_data_sums())
    if not sums:
        return None
    task.check_data_sums(sums, announced)
    return sums


def probe_in(content: RecordDict, task: Task, announced: int) -> Stats | None:
    """The sums of a reply about the candidates; None from a client that tried none.

    Args:
        announced: training examples that the node said it holds.
    """
    sums = arrays.from_record(record_of(content, messages.STATS, ArrayRecord) or ArrayRecord())
    if not sums:
        return None
    messages.check_data(sums, probe.no_losses(task.run))
    probe.check_losses(sums, task.run, announced)
    return sums if int(sums[probe.HELD]) else None


def of_fewer(stats: Stats, counted: int, claimed: int) -> Stats:
    """Scale statistics over `claimed` examples down to a weight of `counted`; ratios stay the same."""
    if counted >= claimed:
        return stats
    share = counted / claimed
    return {
        key: (value.double() * share).round().to(value.dtype) if not value.is_floating_point() else value * share
        for key, value in stats.items()
    }
