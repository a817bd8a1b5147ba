"""The probe before round 1: its candidates, the sums that clients send about them, and what is picked.

Used by the client, which trains the candidates, and by the server, which checks the sums and picks. Works for
every task, and for every key of `[task]` that changes the model but not how data is read. Knows no round and
trains nothing.

Legend: C candidates, in the order of the run file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.config.probe import ProbeFamily, ProbePick, ProbeSection
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Task
from fednc.common.tasks.metrics import Stats, count_zeros, refuse_unless

TRAIN, HELD_OUT = "train_C", "held_out_C"  # sums of losses, over examples and seeds
TRAINED, HELD = "trained", "held"  # numbers of examples
MOST_LOSS = 1e4  # of one example; a larger one, or one that is not finite, counts as this
_FEWEST_TO_FIT = 4  # points; a parabola goes through any three, so it would smooth nothing


@dataclass(frozen=True)
class Candidate:
    """One candidate: the run file under which it would train."""

    pick: ProbePick
    run: RunConfig


@dataclass(frozen=True, kw_only=True)
class FamilyCurve:
    """The mean losses of a family by the values of its axis.

    Attributes:
        fitted: the parabola in the logarithm of the axis that fits the held-out losses best; [] if there are too
            few.
        best: the value of the axis that stands for the family.
        loss: its held-out loss.
    """

    name: str
    axis: str
    values: tuple[float, ...]
    train: tuple[float, ...]
    held_out: tuple[float, ...]
    fitted: tuple[float, ...]
    best: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class ProbeVerdict:
    """What the probe picked, and why."""

    pick: ProbePick
    curves: tuple[FamilyCurve, ...]
    margin: float
    trained: int
    held_out: int

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the event, the run's folder and the summary."""
        return {
            "picked": self.pick.model_dump(),
            "margin": self.margin,
            "examples": {"trained": self.trained, "held_out": self.held_out},
            "families": [asdict(curve) for curve in self.curves],
        }

    @property
    def text(self) -> str:
        """In one line."""
        shown = [f"{one.name} at best {one.loss:.4f} with {one.axis} = {one.best:g}" for one in self.curves]
        (axis,) = (one.axis for one in self.curves if one.name == self.pick.family)
        return (
            f"the probe says {self.pick.family!r}, {axis} = {self.pick.value:g}. Held-out loss: {'; '.join(shown)}"
        )


def section_of(run: RunConfig) -> ProbeSection:
    """[probe] of a run that has one."""
    assert run.probe is not None
    return run.probe


def with_pick(run: RunConfig, pick: ProbePick) -> RunConfig:
    """The run with a candidate picked; its digest stays the same. Raises ConfigError: there is no such
    candidate.
    """
    section = section_of(run)
    try:
        section.keys_of(pick)
    except ValueError as e:
        raise ConfigError(f"probe.{e}") from e
    return run.model_copy(update={"probe": section.model_copy(update={"picked": pick})})


def candidates(run: RunConfig) -> tuple[Candidate, ...]:
    """All candidates of a run, in the order of its file."""
    picks = [
        ProbePick(family=family.name, value=value)
        for family in section_of(run).families
        for value in family.values
    ]
    return tuple(Candidate(pick, with_pick(run, pick)) for pick in picks)


def check_candidates(run: RunConfig, task: Task) -> None:
    """Raises ConfigError: the task cannot be built for a candidate, or a candidate needs other data."""
    for each in candidates(run):
        where = f"probe, {each.pick.family} {each.pick.value:g}"
        try:
            built = discovery.get(each.run)
        except ConfigError as e:
            raise ConfigError(f"{where}: {e}") from e
        same = type(built) is type(task) and built.class_names == task.class_names
        # Each client reads its data once, for all candidates.
        same &= built.preprocessing() == task.preprocessing()
        if not same or _forms(built.no_data_sums()) != _forms(task.no_data_sums()):
            raise ConfigError(
                f"{where}: this candidate needs other classes, other inputs or other sums of the data than "
                "[task]: candidates may only differ in keys that change the model"
            )


def _forms(sums: Stats) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (zero.shape, zero.dtype) for name, zero in sums.items()}


# ---- sums ------------------------------------------------------------------------------------------------------


def no_losses(run: RunConfig) -> Stats:
    """The sums over no examples."""
    zero_C = torch.zeros(sum(len(family.values) for family in section_of(run).families), dtype=torch.float64)
    return {TRAIN: zero_C, HELD_OUT: zero_C.clone(), TRAINED: count_zeros(), HELD: count_zeros()}


def bounded(loss: Tensor) -> float:
    """The loss of one example as it counts: training that diverged is as bad as possible, not an error."""
    value = float(loss)
    return max(-MOST_LOSS, min(MOST_LOSS, value)) if math.isfinite(value) else MOST_LOSS


def check_losses(sums: Mapping[str, Tensor], run: RunConfig, announced: int) -> None:
    """Check sums of the right form. Raises ProtocolError: so many training examples cannot have them."""
    trained, held, seeds = int(sums[TRAINED]), int(sums[HELD]), section_of(run).seeds
    fits = trained >= 0 and held >= 0 and trained + held <= announced
    refuse_unless(fits, f"a probe of {trained} and {held} examples, {announced} were announced")
    for name, count in ((TRAIN, trained), (HELD_OUT, held)):
        most = count * seeds * MOST_LOSS * (1 + 1e-9)
        refuse_unless(bool((sums[name].abs() <= most).all()), f"{name} is larger than its examples allow")


# ---- what is picked --------------------------------------------------------------------------------------------


def judged(sums: Mapping[str, Tensor], run: RunConfig) -> ProbeVerdict | None:
    """What the totals say; None without held-out examples."""
    section, trained, held = section_of(run), int(sums[TRAINED]), int(sums[HELD])
    if not held:
        return None
    train = (sums[TRAIN] / max(1, trained * section.seeds)).tolist()
    held_out = (sums[HELD_OUT] / (held * section.seeds)).tolist()
    curves, start = [], 0
    for family in section.families:
        end = start + len(family.values)
        curves.append(_curve(family, train[start:end], held_out[start:end], section.margin))
        start = end
    chosen = _chosen(curves, section.margin)
    pick = ProbePick(family=chosen.name, value=chosen.best)
    return ProbeVerdict(pick=pick, curves=tuple(curves), margin=section.margin, trained=trained, held_out=held)


def _chosen(curves: Sequence[FamilyCurve], margin: float) -> FamilyCurve:
    """The first family if it beats all others by more than `margin`, else the best of the others."""
    first, *others = curves
    rival = min(others, key=lambda curve: curve.loss, default=None)
    return first if rival is None or first.loss + margin < rival.loss else rival


def _curve(family: ProbeFamily, train: list[float], held_out: list[float], margin: float) -> FamilyCurve:
    fitted = fit(family.values, held_out)
    place = best_place(held_out, fitted, margin)
    return FamilyCurve(
        name=family.name,
        axis=family.axis,
        values=family.values,
        train=tuple(train),
        held_out=tuple(held_out),
        fitted=tuple(fitted),
        best=family.values[place],
        loss=held_out[place],
    )


def fit(values: Sequence[float], losses: Sequence[float]) -> list[float]:
    """A parabola in log(value), fitted by least squares, at these values; [] if it says nothing."""
    if len(values) < _FEWEST_TO_FIT:
        return []
    log_values = np.log(np.asarray(values, dtype=np.float64))
    weights = np.polyfit(log_values, np.asarray(losses, dtype=np.float64), 2)
    found: list[float] = np.polyval(weights, log_values).tolist()
    return found


def best_place(losses: Sequence[float], fitted: Sequence[float], margin: float) -> int:
    """Where the fitted curve is lowest; where the losses are, if the curve misses the best one by over `margin`.

    The curve evens out the noise of few examples and seeds. A risk that is flat at both ends and steep in the
    middle is no parabola, and then the losses themselves decide.
    """
    least = min(range(len(losses)), key=losses.__getitem__)
    if not fitted:
        return least
    smooth = min(range(len(fitted)), key=fitted.__getitem__)
    return smooth if losses[smooth] <= losses[least] + margin else least
