"""The keys of `[task]` for few-shot class-incremental image classification: the image task's, and sessions.

Read by the task at the start of a run; docs/config.md is generated from it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr

from fednc.common.config.tables import Count, Share
from fednc.tasks.vision.options import ImageOptions


class FewShotOptions(ImageOptions):
    """Few-shot class-incremental image classification: `classes` are those of the first stage, sessions add more.

    The first stage trains backbone and projection. Then the backbone is frozen, and a session only trains the
    projection, on a few examples of its classes and on the global class memory (NC-FSCIL, arXiv 2302.03004).
    """

    model: Literal["cnn", "plain", "resnet18", "mobilenetv2"] = Field(
        "cnn",
        description="as for the image task, without the models of timm, which have no feature map to average",
    )
    cells: Annotated[int, Field(ge=1, le=8)] = Field(
        1,
        description="the backbone's feature map is averaged over a grid of this many cells per side; 1: over all "
        "of it",
    )
    hidden: Annotated[int, Field(ge=0)] = Field(
        0, description="width of the projection's hidden layers; 0: twice the backbone's width"
    )
    min_sum_examples: Count = Field(
        5,
        description="smallest number of examples for which a client sends the sum of a class's features; a sum "
        "over one example is that example's feature. Classes that no client sends have no memory",
    )
    features: Literal["unit", "raw"] = Field(
        "unit",
        description="`unit`: the backbone's features have length 1, and a projection follows; `raw`: the usual "
        "network, to compare with: features as they are, with the head right behind them, so `frame.dim` is not "
        "used. The memory then holds features divided by a fixed length",
    )
    fit: Literal["clients", "server", "nothing", "head", "all"] = Field(
        "clients",
        description="what a session trains. `clients`: the projection, by those that have examples of its "
        "classes; `server`: the projection, by the server from the class memory alone, while clients only send "
        "sums; `nothing`: new classes only enter the memory. To compare with: `head` or `all` fine-tunes the head "
        "or all weights on the new examples alone, and keeps no memory",
    )
    settle: Annotated[int, Field(ge=0)] = Field(
        0,
        description="steps with which the server fits the projection to the memory after the first stage; the "
        "pooled class means correct errors from averaging different clients",
    )
    balance: bool = Field(
        True,
        description="in sessions: weight each class by 1 / its share of the examples and memories in the batch",
    )
    mixup: Share = Field(
        0.75, description="in sessions: probability that a step mixes projected features half and half"
    )
    copies: Count = Field(
        1,
        description="in sessions: how many times per step the memory of a class of an earlier session is "
        "rehearsed",
    )

    _takes_unknown: bool = PrivateAttr(False)

    @property
    def fine_tunes(self) -> bool:
        """Whether sessions train on their own examples alone, without a memory."""
        return self.fit in ("head", "all")

    @property
    def takes_unknown(self) -> bool:
        """True if an operator starts sessions: data may contain classes that are not named yet."""
        return self._takes_unknown
