"""The keys of `[task]` for colouring line art.

Read by the task at the start of a run; docs/config.md is generated from it.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fednc.common.config.tables import NonNegative, Positive, Share
from fednc.common.tasks.api import TaskOptions

Side = Annotated[int, Field(ge=16, le=1024)]
Width = Annotated[int, Field(ge=4, le=1024)]
MOST_REGIONS = 64


class ColorizeOptions(TaskOptions):
    """Colour for line art after a reference picture."""

    size: tuple[Side, Side] = Field(
        (64, 64), description="height and width of the pictures in pixels; all pictures are resized to it"
    )
    classes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        max_length=MOST_REGIONS,
        description="names of the regions of a picture, such as `hair`, if the data labels them: for the error of "
        "colours in each region, and for `region_weight`. Label values are matched by name",
    )
    attention: Literal["sga", "sga-gradient", "scft"] = Field(
        "sga",
        description="`sga`: no gradient through the attention map, which is normalised twice; `sga-gradient`: the "
        "same with the gradient; `scft`: scaled dot-product attention with learnt queries, keys and values",
    )
    self_attention: bool = Field(True, description="a second block, from the result of the first to itself")
    widths: tuple[Width, ...] = Field(
        (8, 16, 32, 64),
        min_length=2,
        max_length=6,
        description="channels of the levels of both encoders; each level after the first halves the picture. "
        "Published: 16, 32, 64, 128, 256 for 256 pixels",
    )
    residual_blocks: Annotated[int, Field(ge=0, le=16)] = Field(
        1, description="blocks behind the attention; published: 4"
    )
    norm: Literal["batch", "group"] = Field("batch", description="normalisation layers; published: `batch`")
    adversary_widths: tuple[Width, ...] = Field(
        (8, 16, 32),
        min_length=1,
        max_length=6,
        description="channels of the adversary, which halves the picture at each of them. Published: 16, 32, 64, "
        "128",
    )
    adversary: Literal["local", "averaged"] = Field(
        "local",
        description="`local`: each client keeps an adversary of its own, with its optimiser, and never sends it; "
        "`averaged`: it is averaged as the rest of the model, and its optimiser is new in each round",
    )
    adversary_rate: Positive = Field(
        2.0, description="learning rate of the adversary, as a multiple of `train.lr`"
    )
    local_statistics: bool = Field(
        False,
        description="each client keeps the batch statistics of its encoder of references. The server's own test "
        "and the exported model then lack them: judge such a run by its clients' metrics",
    )
    adversarial: NonNegative = Field(1.0, description="weight of the adversary's judgement (least squares)")
    l1: NonNegative = Field(30.0, description="weight of the absolute difference to the true colours")
    perceptual: NonNegative = Field(
        0.01, description="weight of the difference between features of a frozen network"
    )
    style: NonNegative = Field(
        50.0, description="weight of the difference between Gram matrices of these features"
    )
    gram: Literal["sample", "batch"] = Field(
        "sample",
        description="`sample`: Gram matrices of each picture; `batch`: one matrix over all pictures and channels "
        "of a batch, as published, which also compares different pictures",
    )
    perceptual_width: Annotated[int, Field(ge=4, le=64)] = Field(
        8, description="channels of the frozen network's first layers; 64 is the shape of VGG19"
    )
    perceptual_weights: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = Field(
        "",
        description="SHA-256 of a safetensors file with weights of VGG19's first layers, which lies on every "
        "client as `SHA256.safetensors` in the folder that FEDNC_WEIGHTS names; empty: weights drawn from a "
        "fixed seed",
    )
    warp: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.25, description="how far a training picture is bent to make its own reference, as a share of its side"
    )
    region_weight: Share = Field(
        0.0,
        description="weight of a head that tells the regions of `classes` apart, with frame and class memory; "
        "0: none, and the run has no classes",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise ValueError(f"classes: {', '.join(twice)} named more than once")
        if len(self.classes) == 1:
            raise ValueError("classes: one region alone says nothing; name at least two, or none")
        if self.region_weight and not self.classes:
            raise ValueError("region_weight: name the regions in task.classes, or set it to 0")
        if not (self.adversarial or self.l1 or self.perceptual or self.style):
            raise ValueError("l1: at least one of adversarial, l1, perceptual and style must be above 0")
        least = 2 ** max(len(self.widths), len(self.adversary_widths) + 1)
        if min(self.size) < least:
            raise ValueError(
                f"size: {list(self.size)} is too small for {len(self.widths)} widths and "
                f"{len(self.adversary_widths)} adversary_widths; set both sides to {least} or more"
            )
        if self.perceptual_weights and self.perceptual_width != 64:
            raise ValueError("perceptual_weights: weights of VGG19 need perceptual_width = 64")
        return self
