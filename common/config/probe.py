"""The table `[probe]` of the run file: which candidates are tried before round 1, and how one is chosen.

`run.py` combines it with the other tables. A candidate is `[task]` with other values of some keys. Knows no task
and trains nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fednc.common.config.tables import LATER, Count, NonNegative, Positive, Section, TaskSection

MOST_CANDIDATES = 64


class ProbeFamily(Section):
    """Candidates that differ in one key of [task], such as its width or its number of layers."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,39}$")] = Field(
        description="name of the family in the result, e.g. `quantum` or `classical`"
    )
    axis: str = Field(description="the key of [task] that they differ in")
    values: tuple[Annotated[int, Field(gt=0)] | Positive, ...] = Field(
        min_length=1, description="the values of that key, ascending"
    )
    task: dict[str, Any] = Field({}, description="further keys of [task] that all of the family have")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if list(self.values) != sorted(set(self.values)):
            raise ValueError("values: list each value once, in ascending order")
        if self.axis in self.task:
            raise ValueError(f"task: {self.axis!r} is the axis already; leave it out of `task`")
        if fixed := sorted({self.axis, *self.task} & set(TaskSection.model_fields)):
            raise ValueError(f"{fixed[0]}: candidates may differ in the task's own keys only")
        return self


class ProbePick(Section):
    """One candidate."""

    family: str = Field(description="name of its family")
    value: Annotated[int, Field(gt=0)] | Positive = Field(description="its value of the family's axis")


class ProbeSection(Section):
    """Before round 1 each client trains every candidate for a few steps and sends sums of their losses. The server
    picks one, with which the run goes on.
    """

    families: Annotated[tuple[ProbeFamily, ...], Field(min_length=1)] = Field(
        description="the families of candidates; the first one must beat the others by `margin`"
    )
    steps: Count = Field(20, description="training steps of each candidate")
    seeds: Annotated[int, Field(ge=1, le=16)] = Field(
        3, description="how often each is trained, from other weights"
    )
    lr: NonNegative = Field(0.0, description="learning rate; 0: `train.lr`")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.25, description="share of a client's training data that candidates are judged by instead of trained on"
    )
    margin: NonNegative = Field(
        0.02,
        description="the first family is picked if its loss is lower than that of every other by more than this",
    )
    then: Literal["go-on", "ask"] = Field(
        "go-on",
        description="`go-on`: the run goes on with the pick; `ask`: it pauses until an operator resumes "
        "it, or stops it to set `picked`",
    )
    picked: Annotated[ProbePick | None, LATER] = Field(
        None,
        description="use this candidate and try none; it may be added to the file of a run that has not begun",
    )

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        names = [family.name for family in self.families]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"families: {', '.join(twice)} named more than once")
        if (count := sum(len(family.values) for family in self.families)) > MOST_CANDIDATES:
            raise ValueError(f"families: {count} candidates, at most {MOST_CANDIDATES} are tried")
        if self.picked is not None:
            self.keys_of(self.picked)
        return self

    def keys_of(self, pick: ProbePick) -> dict[str, Any]:
        """The keys of [task] of a candidate. Raises ValueError: there is no such candidate."""
        for family in self.families:
            if pick.family == family.name and pick.value in family.values:
                return {**family.task, family.axis: pick.value}
        known = "; ".join(f"{family.name}: {', '.join(map(str, family.values))}" for family in self.families)
        raise ValueError(
            f"picked: no candidate has family {pick.family!r} and value {pick.value}; there are {known}"
        )
