"""The keys of `[task]` for signals: classes, channels, how recordings are cut into windows, network, augmentation.

Read by the task at the start of a run; docs/config.md is generated from it. The run decides how data is cut: a
client whose channels or windows do not fit gets an error.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fednc.common.config.tables import NonNegative, Share
from fednc.common.tasks.classifier import ClassifierOptions

Name = Annotated[str, Field(min_length=1)]


class SignalOptions(ClassifierOptions):
    """Classification of signals."""

    classes: tuple[Name, ...] = Field(
        min_length=1, description="names of the classes; labels of data are matched by name"
    )
    channels: tuple[Name, ...] = Field(
        min_length=1,
        description="names of the channels in order: columns of CSV and parquet files; for npz only their number "
        "counts",
    )
    window: Annotated[int, Field(ge=8, le=65536)] = Field(128, description="samples of a window")
    stride: Annotated[int, Field(ge=0)] = Field(
        0,
        description="samples from the start of a window to the start of the next; 0: as many as `window`, so that "
        "windows do not overlap. For npz: how its windows were cut",
    )
    model: Literal["cnn"] = Field("cnn", description="`cnn`: four convolutions over time with group normalisation")
    width: Annotated[int, Field(ge=8, le=512, multiple_of=8)] = Field(
        32, description="channels of the first two convolutions; the last two have twice as many"
    )
    jitter: NonNegative = Field(
        0.0, description="training: deviation of added noise, in deviations of each channel at the client"
    )
    scaling: Share = Field(0.0, description="training: each window is multiplied by a factor in 1 - s .. 1 + s")
    shift: Share = Field(
        0.0,
        description="training: each window is moved in time by at most this share of its length; its edge values "
        "are repeated",
    )

    @property
    def step(self) -> int:
        """Samples from the start of a window to the start of the next."""
        return self.stride or self.window

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for key in ("classes", "channels"):
            names = getattr(self, key)
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{key}: {', '.join(twice)} named more than once")
        return self
