"""The keys of `[task]` for panoptic segmentation with parts: classes, things, parts, the model.

Read by the task at the start of a run; docs/config.md is generated from it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fednc.common.config.tables import NonNegative, Share
from fednc.tasks.dense.options import DenseOptions

MOST_PARTS = 200  # part values are bytes, and 255 is not labelled
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2, max_length=MOST_PARTS)]


class PanopticOptions(DenseOptions):
    """Panoptic segmentation with parts: every object, every region, and the parts of objects."""

    things: tuple[str, ...] = Field(
        min_length=1,
        description="the classes whose objects are told apart; the others are stuff, one segment per picture",
    )
    parts: dict[str, Names] = Field(
        default_factory=dict,
        description="names of the parts of each class that has parts, two or more; part values are matched "
        "by name",
    )
    queries: Annotated[int, Field(ge=1, le=300)] = Field(
        8, description="thing queries: the most objects that are found in a picture; larger ones come first"
    )
    stages: Annotated[int, Field(ge=1, le=12)] = Field(
        3, description="stages of the decoder, each with own weights"
    )
    decoder: Literal["joint", "masked"] = Field(
        "joint",
        description="`joint`: queries take up the features inside their masks (Panoptic-PartFormer); `masked`: "
        "masked cross-attention, and parts and wholes attend to each other (after its successor)",
    )
    width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] = Field(
        32, description="channels of the decoders and width of the queries"
    )
    pyramid: tuple[Annotated[int, Field(ge=8, le=2048, multiple_of=8)], ...] = Field(
        (16, 24, 32),
        min_length=2,
        max_length=6,
        description="channels of the backbone, one for each halving of the picture; masks have half its size",
    )
    heads: Annotated[int, Field(ge=1, le=32)] = Field(4, description="heads of each attention; divides `width`")
    no_object: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="weight of queries without an object in the loss of classes; others have 1"
    )
    rank: NonNegative = Field(
        0.1, description="weight of the loss that lets the first masks compete for each pixel; 0: off"
    )
    score: Share = Field(0.3, description="predicted things with a lower score are dropped")
    kept: Share = Field(
        0.6,
        description="predicted segments of which others cover so much that less than this share is left "
        "are dropped",
    )

    @model_validator(mode="after")
    def _names_of_things_and_parts(self) -> Self:
        for key, names in (("things", self.things), ("parts", tuple(self.parts))):
            strange = [name for name in names if name not in self.classes]
            if strange:
                raise ValueError(f"{key}: {strange[0]!r} is not one of task.classes")
        for name, own in self.parts.items():
            if len(set(own)) < len(own):
                raise ValueError(f"parts: {name!r} names a part more than once")
        if len(set(self.things)) < len(self.things):
            raise ValueError("things: a class is named more than once")
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide width = {self.width}")
        if self.class_weights:
            raise ValueError("class_weights: not used here; `no_object` weighs queries without an object")
        return self
