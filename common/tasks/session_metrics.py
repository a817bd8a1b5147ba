"""Metrics of an evaluation after a session: accuracy on base, novel and newest classes, and the harmonic mean.

Called by the task with additive counts, so that the pooled counts of many clients give the same as one evaluation.

Legend: K label space.
"""

from __future__ import annotations

from torch import Tensor

from fednc.common.tasks.stages import Stage


def figures(correct_K: Tensor, count_K: Tensor, base: int, stage: Stage) -> dict[str, float]:
    """Accuracy over the examples of groups of classes; groups without examples are left out.

    `base`: classes of the first stage. After a session also `novel`: all later classes; `newest`: those of this
    session; `harmonic`: 2 base novel / (base + novel), 0 if both are 0.
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
