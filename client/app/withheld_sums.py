"""Sums that a client does not send: those over so few examples that they would reveal single ones.

Called by the app before it sums. A sum over one example is that example's feature, or the example itself.

Legend: K label space.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from fednc.common.errors import DataError, ProtocolError, UnusableValuesError
from fednc.common.tasks.api import Task, TaskData
from fednc.common.tasks.metrics import Stats
from fednc.common.wire import messages

log = logging.getLogger("fednc.client")

NEVER = 1 << 62  # more examples than anybody has: no sum is sent, and nothing is logged


def sendable(having_K: Tensor, least: int, class_names: Sequence[str], told: set[str]) -> Tensor:
    """bool [K]: the classes whose features may be summed; not those with fewer than `least` examples here.

    Args:
        having_K: this client's examples that have the class.
        told: classes that the log has named already; others that are left out are logged and added.
    """
    few_K = (having_K > 0) & (having_K < least)
    for vertex in few_K.nonzero().flatten().tolist():
        if (name := class_names[vertex]) not in told and least < NEVER:
            told.add(name)
            log.warning(
                "class %r: its sum of features is not sent, because it is over %d of this client's examples, "
                "fewer than min_sum_examples = %d. The class memory is made without them.",
                *(name, int(having_K[vertex]), least),
            )
    return ~few_K


def sendable_data_sums(task: Task, data: TaskData, least: int) -> Stats:
    """The task's sums of the data; {} if the client has fewer than `least` examples, and the log says so.

    Raises:
        ProtocolError: the task declares no sums.
        DataError: the data has values of which no finite sum can be made.
    """
    none = task.no_data_sums()
    if not none:
        raise ProtocolError(f"the server asks for sums of the data, but task {task.name!r} declares none")
    if data.examples < least:
        if least < NEVER:
            log.warning(
                "no sums of the data are sent, because there are %d training examples here, fewer than "
                "min_data_sum_examples = %d. Normalisation is made without them.",
                *(data.examples, least),
            )
        return {}
    sums = task.data_sums(data, least)
    try:
        messages.check_data(sums, none)
    except UnusableValuesError as e:
        raise DataError(f"task {task.name!r}: {e}. Remove or repair such values in the training data.") from e
    return sums


def fitting_batch(examples: int, batch: int, least: int) -> int:
    """The smallest batch size from `batch` on that leaves no batch of fewer than `least` examples.

    In a short last batch each example counts for more than in the others.
    """
    if least <= 1 or examples <= batch:
        return batch
    return next(size for size in range(batch, examples + 1) if not 0 < examples % size < least)
