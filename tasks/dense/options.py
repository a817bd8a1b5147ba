"""The keys of `[task]` that all dense tasks have: classes, size and preparation of pictures.

Read by the task at the start of a run; docs/config.md is generated from the options of each task.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from fednc.common.config.tables import Count
from fednc.common.tasks.classifier import ClassifierOptions
from fednc.tasks.dense.maps import VOID

MIDDLE_GREY = 0.5
Side = Annotated[int, Field(ge=8, le=4096)]


class DenseOptions(ClassifierOptions):
    """The keys that tasks with a value for every pixel share."""

    classes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=2,
        max_length=VOID,
        description="names of the classes; class i has vertex i of the frame. Label values are matched by name",
    )
    void: tuple[str, ...] = Field(
        ("void",),
        description="names of label values that are neither trained on nor judged; the value 255 never is",
    )
    size: tuple[Side, Side] = Field(
        (40, 40),
        description="height and width of the pictures in pixels. Picture files are resized to it, their labels "
        "without mixing values; arrays must have it",
    )
    channels: Annotated[int, Field(ge=3, le=3)] = Field(3, description="3: colour")
    mean: tuple[float, ...] = Field(
        (MIDDLE_GREY,) * 3, description="per channel, subtracted from pixels in 0..1", min_length=3, max_length=3
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (MIDDLE_GREY,) * 3, description="per channel, divides the result", min_length=3, max_length=3
    )
    crop: tuple[Side, ...] = Field(
        (), description="height and width of random crops in training; empty: whole pictures"
    )
    flip: bool = Field(False, description="mirror training pictures left to right at random")
    memory_pixels: Count = Field(
        4096,
        description="sums of features are made of about this many labelled pixels of a picture: evenly spread, "
        "each class with its share and at least one",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_void_among_classes(cls, value: Any) -> Any:
        if isinstance(value, dict):
            void, classes = value.get("void", ("void",)), value.get("classes", ())
            if isinstance(void, list | tuple) and isinstance(classes, list | tuple):
                both = [name for name in classes if name in void]
                if both:
                    raise ValueError(f"void: {both[0]!r} is one of task.classes; name it in one of the two lists")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise ValueError(f"classes: {', '.join(twice)} named more than once")
        if self.crop and len(self.crop) != 2:
            raise ValueError(f"crop: {len(self.crop)} values, expected height and width, or none")
        if self.crop and (self.crop[0] > self.size[0] or self.crop[1] > self.size[1]):
            raise ValueError(
                f"crop: {list(self.crop)} is larger than the pictures (task.size = {list(self.size)})"
            )
        return self

    @property
    def crop_size(self) -> tuple[int, int] | None:
        """Height and width of training crops; None: whole pictures."""
        return (self.crop[0], self.crop[1]) if self.crop else None
