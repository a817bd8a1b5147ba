"""The keys of `[task]` for image classification: which classes, which model, how images are prepared.

Read by the task at the start of a run; docs/config.md is generated from it. The run defines the preprocessing: a
client whose images do not fit gets an error, and its images are never prepared differently.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fednc.common.tasks.classifier import ClassifierOptions
from fednc.tasks.vision.timm_models import NAME, inputs_of

MIDDLE_GREY = 0.5


class ImageOptions(ClassifierOptions):
    """Image classification."""

    classes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1,
        description="names of the classes; class i has vertex i of the frame. Labels of data are matched by name",
    )
    model: Literal["cnn", "plain", "resnet18", "mobilenetv2"] | Annotated[str, Field(pattern=f"^{NAME}$")] = Field(
        "cnn",
        description="`cnn`: small, for CPUs; `plain`: seven convolutions without normalisation, needs a good "
        "initialisation; `resnet18`: with a stem for small images; `mobilenetv2`: with strides for 32x32; "
        "`timm:NAME`: a model of timm by its name there (extra `timm`), without weights unless task.weights gives "
        "them",
    )
    norm: Literal["group", "batch"] = Field(
        "group",
        description="normalisation layers of the models above except `plain` and those of timm; the running "
        "statistics of `batch` are averaged with the weights",
    )
    width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] = Field(
        32,
        description="channels of `cnn`'s first layer (its later layers have twice as many), and of all layers of "
        "`plain`",
    )
    size: Annotated[int, Field(ge=4, le=1024)] = Field(
        32,
        description="height and width of the images in pixels; folder and hf images are resized to it. For a "
        "model of timm, the size that it was made for",
    )
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: colour")
    mean: tuple[float, ...] = Field(
        (),
        description="per channel, subtracted from pixels in 0..1; empty: 0.5 for each, or what a model of timm "
        "was made for",
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (),
        description="per channel, divides the result; empty: 0.5 for each, or what a model of timm was made for",
    )
    augment: Literal["none", "crop-flip"] | tuple[str, ...] = Field(
        "none",
        description="`none`: training images unchanged; `crop-flip`: moved by up to an eighth of the size and "
        "mirrored at random; or a list of changes, applied one after the other: `flip`, `crop`, `zoom`, `rotate`, "
        "`erase`, `colour`, and those of the task's plug-in (docs/images.md)",
    )
    resize: bool = Field(
        False, description="resize arrays (digits, npz) of another size too, as folder and hf images are"
    )

    @property
    def takes_unknown(self) -> bool:
        """Whether data may contain classes that the run does not have yet; they are left out."""
        return False

    @model_validator(mode="before")
    @classmethod
    def _fitting_inputs(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        channels, model = 1 if value.get("channels") == 1 else 3, value.get("model")
        if isinstance(model, str) and re.fullmatch(NAME, model):
            fitting = asdict(inputs_of(model, channels))
        else:
            fitting = dict.fromkeys(("mean", "std"), (MIDDLE_GREY,) * channels)
        return {**value, **{key: value.get(key) or fitting[key] for key in fitting}}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if twice:
            raise ValueError(f"classes: {', '.join(twice)} named more than once")
        for key in ("mean", "std"):
            given = len(getattr(self, key))
            if given != self.channels:
                raise ValueError(f"{key}: {given} values for {self.channels} channels; give one for each")
        return self
