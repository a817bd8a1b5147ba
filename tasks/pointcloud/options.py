"""The keys of `[task]` for point clouds, and `[split] tilt_deg`.

Read by the task at the start of a run; docs/config.md is generated from it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fednc.common.config.tables import NonNegative, SplitSection
from fednc.common.tasks.api import TaskOptions

Rotation = Literal["none", "z", "so3"]
Count = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=4, le=4096)]


class PointCloudOptions(TaskOptions):
    """Classification of point clouds."""

    classes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1,
        description="names of the classes; class i has vertex i of the frame. Labels of data are matched by name",
    )
    labels: Literal["clouds", "points"] = Field(
        "clouds",
        description="what has a class: each cloud, or each of its points (parts of a thing, or of a scene)",
    )
    memory_points: Count = Field(
        128, description="with labels = 'points': points of a cloud that the class memory is made of"
    )
    points: Annotated[int, Field(ge=16, le=16384)] = Field(
        512, description="points of a cloud. Larger clouds are thinned out, smaller ones repeat points"
    )
    align: bool = Field(
        True,
        description="turn each neighbourhood onto the principal axes of the layer's weights, so that rotations of "
        "a cloud change nothing; false: the same network without it",
    )
    relative_frames: bool = Field(
        False,
        description="with `align`: tell each neighbourhood how those inside it are turned against it. Helps where "
        "parts of the same form differ in how they are put together",
    )
    centres: tuple[Count, Count] = Field(
        (64, 16),
        description="neighbourhoods of the first and the second level; the third level is the whole cloud",
    )
    neighbours: tuple[Count, Count] = Field((24, 8), description="points of a neighbourhood, on both levels")
    widths: tuple[Width, Width, Width] = Field((32, 64, 128), description="features of the three levels")
    train_rotation: Rotation = Field(
        "z", description="how training clouds are turned at random: not at all, about the z axis, or in any way"
    )
    test_rotation: Rotation = Field(
        "z", description="how each test cloud is turned once. Accuracy under any rotation is always reported too"
    )
    jitter: NonNegative = Field(
        0.0, description="standard deviation of noise on training points; a cloud has radius 1"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise ValueError(f"classes: {', '.join(twice)} named more than once")
        if not self.points >= self.centres[0] >= self.centres[1]:
            raise ValueError(
                f"centres: {list(self.centres)} of {self.points} points; each level needs at most as many centres "
                "as the level before has points"
            )
        if self.neighbours[0] > self.points or self.neighbours[1] > self.centres[0]:
            raise ValueError(f"neighbours: {list(self.neighbours)} are more than there are points on that level")
        if self.relative_frames and not self.align:
            raise ValueError("relative_frames: needs align = true, since without it there are no frames")
        return self


class CloudSplit(SplitSection):
    """`[split]` of point cloud tasks."""

    tilt_deg: Annotated[float, Field(ge=0, le=180)] = Field(
        0.0,
        description="each client's clouds lean by this angle, each client's in its own direction, as if every "
        "client had another scanner",
    )
