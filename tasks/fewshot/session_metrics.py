"""What is told of an evaluation after a session: base, novel and newest classes apart, and their harmonic mean.

Called by the task with additive counts, so that pooled counts of many clients give what one evaluation would.

Legend: K label space.
"""

from __future__ import annotations

from torch import Tensor

from fednc.common.tasks.stages import Stage


def figures(correct_K: Tensor, count_K: Tensor, base: int, stage: Stage) -> dict[str, float]:
    """Accuracy over the examples of some classes; what has no examples is left out.

    `base`: classes of the beginning. After a session also `novel`: all later ones; `newest`: those of the session;
    `harmonic`: 2 base novel / (base + novel), 0 where both are.
    """
    spans = {"base": (0, base)}
    if not stage.is_first:
        spans |= {"novel": (base, stage.classes), "newest": (stage.earlier, stage.classes)}
    found = {
        name: int(correct_K[first:end].sum()) / int(count_K[first:end].sum())
        for name, (first, end) in spans.items()
        if count_K[first:end].sum() > 0
    }
    if {"base", "novel"} <= found.keys():
        total = found["base"] + found["novel"]
        found["harmonic"] = 2 * found["base"] * found["novel"] / total if total else 0.0
    return found
