"""What a client keeps to itself: sums of features over so few of its examples that they tell of single ones.

Called by the app before class sums are made. A sum over one example is that example's feature.

Legend: K label space.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

log = logging.getLogger("fednc.client")

NEVER = 1 << 62  # more examples than anybody has: no sum is sent, and none is missed


def sendable(count_K: Tensor, least: int, class_names: Sequence[str], told: set[str]) -> Tensor:
    """bool [K], the classes whose features may be summed: all but those of fewer than `least` examples here.

    Args:
        count_K: this client's examples of each class.
        told: classes of which it was said that they are not; the others' names are said and put in.
    """
    few_K = (count_K > 0) & (count_K < least)
    for vertex in few_K.nonzero().flatten().tolist():
        if (name := class_names[vertex]) not in told and least < NEVER:
            told.add(name)
            log.warning(
                "class %r: its sum of features stays here, for it is over %d of this client's examples, fewer "
                "than min_sum_examples = %d; the class memory is made without them",
                *(name, int(count_K[vertex]), least),
            )
    return ~few_K


def fitting_batch(examples: int, batch: int, least: int) -> int:
    """The smallest batch from `batch` on that leaves no last batch of an epoch of fewer than `least` examples.

    A short last batch weighs its few examples more than the others weigh theirs.
    """
    if least <= 1 or examples <= batch:
        return batch
    return next(size for size in range(batch, examples + 1) if not 0 < examples % size < least)
