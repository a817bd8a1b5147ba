"""The keys of `[task]` for semantic segmentation: those of dense tasks, the model, CeCo.

Read by the task at the start of a run; docs/config.md is generated from it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fednc.common.config.tables import NonNegative, Positive, Share
from fednc.tasks.dense.options import DenseOptions


class SegmentationOptions(DenseOptions):
    """Semantic segmentation: a class for every pixel."""

    model: Literal["unet", "deeplab"] = Field(
        "unet",
        description="`unet`: small, keeps the size; `deeplab`: dilated convolutions over the feature map of "
        "`backbone`",
    )
    backbone: str = Field(
        "cnn", description="of `deeplab`: a model of the image task, such as `cnn`, `resnet18` or `timm:resnet50`"
    )
    norm: Literal["group", "batch"] = Field("group", description="normalisation layers of `backbone`")
    width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] = Field(
        24,
        description="channels of `unet`'s first level, whose next ones have 2 and 4 times as many, and of "
        "`deeplab`'s head and its backbone",
    )
    tile: Annotated[int, Field(ge=0)] = Field(
        0,
        description="side of the tiles in which `fednc predict` predicts pictures at their own size; 0: they are "
        "predicted at task.size, and the result is resized",
    )
    overlap: Annotated[int, Field(ge=0)] = Field(
        32, description="pixels by which neighbouring tiles overlap at least"
    )
    common: tuple[str, ...] = Field((), description="classes of the group `common` of the metrics; see `tail`")
    tail: tuple[str, ...] = Field(
        (), description="classes of the group `tail`; those in neither list are `head`. Both empty: no groups"
    )
    ceco: NonNegative = Field(
        0.0,
        description="weight of the centre collapse regulariser (CeCo): the mean feature of each class in a batch "
        "is drawn to a fixed frame of its own. 0: off; 0.4 is a good start",
    )
    ceco_scale: Positive = Field(5.0, description="factor on the cosines in CeCo's softmax")
    ceco_trainable: bool = Field(
        False,
        description="train CeCo's two projections and average them with the model, instead of keeping them random "
        "and frozen",
    )
    ceco_relu: bool = Field(
        True, description="an activation before CeCo's frame, as published; without it centres can reach the frame"
    )
    ceco_norm: bool = Field(True, description="normalise CeCo's reduced features over the pixels of the batch")
    ceco_reduced: Annotated[int, Field(ge=1)] = Field(128, description="width of CeCo's first projection")
    ceco_width: Annotated[int, Field(ge=1)] = Field(512, description="width of CeCo's frame")
    ceco_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="dropout before CeCo's frame")
    ceco_memory: Share = Field(
        0.0,
        description="share of the global class memory in the centre of a class that is rare at a client; needs a "
        "method.readout that collects the memory. 0: centres of the batch alone",
    )
    ceco_rare: Share = Field(
        0.5,
        description="a class is rare at a client where it has less than this share of the mean number of pixels "
        "per class there",
    )

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for key in ("common", "tail"):
            strange = [name for name in getattr(self, key) if name not in self.classes]
            if strange:
                raise ValueError(f"{key}: {strange[0]!r} is not one of task.classes")
        both = sorted(set(self.common) & set(self.tail))
        if both:
            raise ValueError(f"tail: {both[0]!r} is in task.common too; name it in one of the two lists")
        if self.tile and self.overlap >= self.tile:
            raise ValueError(f"overlap: {self.overlap} must be smaller than tile = {self.tile}")
        if self.ceco and self.ceco_width < len(self.classes) - 1:
            raise ValueError(
                f"ceco_width: {self.ceco_width} is too narrow for {len(self.classes)} classes; set it to "
                f"{len(self.classes) - 1} or more"
            )
        return self
