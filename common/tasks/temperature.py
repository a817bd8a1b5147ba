"""The temperature of a classifier's read-out: fitted after training, from sums that clients send once.

The softmax of scores / T is the confidence that people see. T is chosen so that the mean log-loss on examples held
out of training is least; no example, score or label leaves a client, only sums over its held-out examples at a
fixed grid of temperatures. Predictions stay the same, because T is above 0. Knows no round and no model.

Legend: B batch, P pixels or points of an example, M those judged, K label space, G temperatures of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Task, TaskData
from fednc.common.tasks.evaluation import do_nothing, summed
from fednc.common.tasks.metrics import Stats, count_zeros, exact, refuse_unless

_STEPS = 8  # of the grid per factor of two
GRID: tuple[float, ...] = tuple(
    2.0 ** (step / _STEPS) for step in range(-6 * _STEPS, 10 * _STEPS + 1)
)  # 1/64 to 1024
# The loss of one example counts up to here, a probability of 1e-14. Float32 does not tell smaller ones from 0, and
# no single example, nor anybody who makes one up, decides alone.
MOST_NATS = 32.0
MOST_JUDGED = 1024  # pixels or points of an example; more would only take time
_EVEN = 0.5  # nats over all examples: temperatures whose losses differ by less are equally likely
ROWS, LOSS = "rows", "loss_G"


def no_losses() -> Stats:
    """The sums over no examples."""
    return {ROWS: count_zeros(), LOSS: torch.zeros(len(GRID), dtype=torch.float64)}


def losses(output: Tensor, target: Tensor) -> Stats:
    """Sums over a batch: examples, and their log-loss at each temperature of the grid.

    If labels are maps, the loss of an example is the mean over its pixels or points, which are too alike to count
    as examples, or over `MOST_JUDGED` of them, evenly spaced. What has no class, or a class without a score yet,
    is left out: no temperature changes its loss.

    Args:
        output: scores [B, K, ...].
        target: labels [B, ...].
    """
    examples, classes, each = len(target), output.shape[1], math.prod(target.shape[1:])
    every = -(-each // MOST_JUDGED)
    score_BPK = output.reshape(examples, classes, each)[:, :, ::every].double().transpose(1, 2)
    label_BP = target.reshape(examples, each)[:, ::every]
    has_class_BP = (label_BP >= 0) & (label_BP < classes)
    label_BP = label_BP.where(has_class_BP, 0)
    known_BP = has_class_BP & score_BPK.gather(2, label_BP[..., None]).squeeze(2).isfinite()
    count_B = known_BP.sum(dim=1)
    score_MK, label_M = score_BPK[known_BP], label_BP[known_BP]
    row_M = known_BP.nonzero()[:, 0]

    def summed(temperature: float) -> Tensor:
        loss_M = F.cross_entropy(score_MK / temperature, label_M, reduction="none").clamp(0, MOST_NATS)
        loss_B = loss_M.new_zeros(examples).index_add_(0, row_M, loss_M)
        return exact(loss_B / count_B.clamp_min(1))

    loss_G = torch.stack([summed(temperature) for temperature in GRID])
    return {ROWS: (count_B > 0).sum().cpu(), LOSS: loss_G.cpu()}


def losses_over(
    task: Task,
    model: nn.Module,
    data: TaskData,
    guide: Guide,
    batch: int,
    before_batch: Callable[[], None] = do_nothing,
) -> Stats:
    """The sums over all of `data`; `guide` must have temperature 1."""
    found = summed(lambda each: losses(*task.outputs(model, each, guide)), model, data, batch, before_batch)
    return found or no_losses()


def check_losses(sums: Mapping[str, Tensor], announced: int) -> None:
    """Raises ProtocolError: so many held-out examples cannot have these sums, which have the right form."""
    rows, loss_G = int(sums[ROWS]), sums[LOSS]
    refuse_unless(0 <= rows <= announced, f"losses of {rows} examples, {announced} were held out")
    fits = (loss_G >= 0) & (loss_G <= rows * MOST_NATS)  # NaN compares false
    refuse_unless(bool(fits.all()), "a loss is below 0, or larger than its examples allow")


def fitted(sums: Mapping[str, Tensor]) -> float | None:
    """The temperature with the least loss; None without examples.

    Between the grid's values it is the vertex of the parabola through the three best ones. If the loss has no
    minimum inside the grid, as with held-out examples that are all predicted rightly, the data does not determine
    a temperature: then the value nearest to 1 is taken whose likelihood is about that of the best.
    """
    if not int(sums[ROWS]):
        return None
    loss_G = sums[LOSS]
    best = int(loss_G.argmin())
    if not 0 < best < len(GRID) - 1:
        even_G = (loss_G <= loss_G[best] + _EVEN).nonzero().flatten().tolist()
        even: list[float] = [GRID[place] for place in even_G]
        return min(even, key=_distance_from_one)
    left, least, right = map(float, loss_G[best - 1 : best + 2])
    bend = left - 2 * least + right
    shift = (left - right) / (2 * bend) if bend > 0 else 0.0
    return GRID[best] * math.exp2(shift / _STEPS)


def _distance_from_one(temperature: float) -> float:
    return max(temperature, 1 / temperature)


def is_calibrated(task: Task) -> bool:
    """Whether the run fits a temperature: the task scores classes, and the run file does not switch it off."""
    return bool(task.label_space) and task.scores_classes and task.run.evaluate.temperature
