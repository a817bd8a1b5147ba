"""The keys of `[task]` for several dense tasks at once: which tasks, the model, their weights.

Read by the task at the start of a run; docs/config.md is generated from it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fednc.common.config.tables import Positive, Share
from fednc.tasks.dense.maps import VOID
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.preparation import DenseSplit
from fednc.tasks.multitask.kinds import KINDS, SEGMENTATION

TaskName = Literal["segmentation", "parts", "saliency", "normals", "depth", "edges"]
Name = Annotated[str, Field(min_length=1)]


class MultitaskOptions(DenseOptions):
    """Several dense tasks at once, each learnt where its labels are."""

    tasks: tuple[TaskName, ...] = Field(
        ("segmentation", "depth", "normals", "edges"),
        min_length=1,
        description="what is predicted for every pixel. A client needs labels for one of them, no client for all; "
        "the metric of the first one is the primary metric",
    )
    classes: tuple[Name, ...] = Field(
        (), max_length=VOID, description="names of the classes of `segmentation`; see the segmentation task"
    )
    parts: tuple[Name, ...] = Field(
        ("background", "upper", "lower"),
        min_length=2,
        max_length=VOID,
        description="names of the values of the part map, from 0 on",
    )
    private: tuple[TaskName, ...] = Field(
        (),
        description="tasks whose own layers never leave a client that has their labels. The other tasks do not "
        "see them; for a task that one site owns and does not share",
    )
    stretch: bool = Field(
        True,
        description="whether the server makes up for the length that the mean change of the shared layers loses "
        "where clients train different tasks; without effect where all have the same ones",
    )
    weights: dict[TaskName, Positive] = Field(
        {},
        description="weight of a task's loss; the default is "
        + ", ".join(f"{kind.weight:g} for {name}" for name, kind in KINDS.items()),
    )
    interaction: Literal["location", "token", "off"] = Field(
        "location",
        description="how tasks look at each other: `location`, at the same place; `token`, at all places, for "
        "small pictures: its cost grows with the square of their number; `off`: not at all",
    )
    backbone: str = Field(
        "pyramid",
        description="`pyramid`: four small stages; or a model of the image task, such as `resnet18` or "
        "`timm:resnet50`",
    )
    norm: Literal["group", "batch"] = Field(
        "group", description="normalisation layers; `batch`, as published, makes pictures depend on the batch"
    )
    width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] = Field(
        16, description="channels of the first stage of `pyramid`, whose next ones have 2 to 4 times as many"
    )
    stride: Literal[2, 4, 8] = Field(
        4, description="how many times smaller than the picture the finest feature map is"
    )
    channels_each: Annotated[int, Field(ge=8, le=2048, multiple_of=8)] = Field(
        32, description="channels of each task's features; 256 as published"
    )
    depth: Annotated[int, Field(ge=1, le=16)] = Field(1, description="deformable mixer blocks of each task")
    heads: Annotated[int, Field(ge=1, le=64)] = Field(4, description="heads of the attention between tasks")
    edge_weight: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="weight of edges against all other pixels in the loss of edges"
    )
    edge_tolerance: Share = Field(
        0.0075,
        description="share of the picture's diagonal, rounded to pixels, by which a predicted edge may be off",
    )

    @model_validator(mode="after")
    def _tasks_fit(self) -> Self:
        for key in ("tasks", "private"):
            names = getattr(self, key)
            if len(set(names)) < len(names):
                raise ValueError(f"{key}: {', '.join(names)} names a task twice")
        if strange := [name for name in self.private if name not in self.tasks]:
            raise ValueError(f"private: {strange[0]!r} is not one of task.tasks")
        if SEGMENTATION in self.private:
            raise ValueError("private: 'segmentation' cannot be, since its class memory is shared")
        if set(self.private) == set(self.tasks):
            raise ValueError("private: names every task, so there is nothing that clients learn together")
        if SEGMENTATION in self.tasks and len(self.classes) < 2:
            raise ValueError(f"classes: {len(self.classes)} classes, and 'segmentation' needs 2 or more")
        if self.channels_each % self.heads:
            raise ValueError(f"heads: channels_each = {self.channels_each} cannot be divided by {self.heads}")
        return self

    @property
    def edge_pixels(self) -> int:
        """How far a predicted edge may be off, in pixels."""
        return round(self.edge_tolerance * math.hypot(*self.size))


class MultitaskSplit(DenseSplit):
    """`[split]` of several dense tasks."""

    owners: tuple[tuple[TaskName, ...], ...] = Field(
        (), description="for each part the tasks whose labels it keeps; empty: every part keeps all"
    )

    @model_validator(mode="after")
    def _as_many_as_parts(self) -> Self:
        if self.owners and len(self.owners) != self.parts:
            raise ValueError(f"owners: {len(self.owners)} lists for {self.parts} parts (split.parts)")
        if not all(self.owners):
            raise ValueError("owners: a part without any task has nothing to learn from")
        return self
