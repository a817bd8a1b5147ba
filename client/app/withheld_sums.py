"""Class sums that a client does not send: those over so few examples that they would reveal single ones.

Called by the app before it sums. A sum over one example is that example's feature.

Legend: K label space.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

log = logging.getLogger("fednc.client")

NEVER = 1 << 62  # more examples than anybody has: no sum is sent, and nothing is logged


def sendable(count_K: Tensor, least: int, class_names: Sequence[str], told: set[str]) -> Tensor:
    """bool [K]: the classes whose features may be summed; not those with fewer than `least` examples here.

    Args:
        count_K: this client's examples of each class.
        told: classes that the log has named already; others that are left out are logged and added.
    """
    few_K = (count_K > 0) & (count_K < least)
    for vertex in few_K.nonzero().flatten().tolist():
        if (name := class_names[vertex]) not in told and least < NEVER:
            told.add(name)
            log.warning(
                "class %r: its sum of features is not sent: it is over %d of this client's examples, fewer than "
                "min_sum_examples = %d. The class memory is made without them.",
                *(name, int(count_K[vertex]), least),
            )
    return ~few_K


def fitting_batch(examples: int, batch: int, least: int) -> int:
    """The smallest batch size from `batch` on that leaves no batch of fewer than `least` examples.

    In a short last batch each example counts for more than in the others.
    """
    if least <= 1 or examples <= batch:
        return batch
    return next(size for size in range(batch, examples + 1) if not 0 < examples % size < least)
