"""What a client keeps to itself: sums of features over so few of its examples that they tell of single ones.

Called by the app before class sums leave the machine. A sum over one example is that example's feature.

Legend: K label space.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from fednc.common.memory import ClassSums

log = logging.getLogger("fednc.client")


def withhold(sums: ClassSums, least: int, class_names: Sequence[str], told: set[str]) -> tuple[ClassSums, int]:
    """(the sums that may be sent, number of classes held back): those over fewer than `least` are zero.

    Args:
        told: classes of which that was said; the others' names are said and put in.
    """
    few_K = (sums.count_K > 0) & (sums.count_K < least)
    for vertex in few_K.nonzero().flatten().tolist():
        if (name := class_names[vertex]) not in told:
            told.add(name)
            log.warning(
                "class %r: its sum of features stays here, for it is over %d of this client's examples, fewer "
                "than min_sum_examples = %d; the class memory is made without them",
                *(name, int(sums.count_K[vertex]), least),
            )
    sent = ClassSums(
        sum_KD=torch.where(few_K[:, None], 0.0, sums.sum_KD), count_K=torch.where(few_K, 0, sums.count_K)
    )
    return sent, int(few_K.sum())
