"""The keys of `[task]` for few-shot class-incremental image classification: the image task's, and how sessions go.

Read by the task at the start of a run; docs/config.md is generated from it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr

from fednc.common.config.tables import Count, Share
from fednc.tasks.vision.options import ImageOptions


class FewShotOptions(ImageOptions):
    """Few-shot class-incremental image classification: `classes` are those of the beginning, sessions add more.

    The beginning trains backbone and projection. Then the backbone is frozen, and a session fits the projection
    alone, on a few examples of its classes and on the global class memory (NC-FSCIL, arXiv 2302.03004).
    """

    cells: Annotated[int, Field(ge=1, le=8)] = Field(
        1,
        description="the backbone's feature map is averaged over so many cells by side; 1: over all of it",
    )
    hidden: Annotated[int, Field(ge=0)] = Field(
        0, description="width of the projection's hidden layers; 0: twice the backbone's"
    )
    min_sum_examples: Count = Field(
        5,
        description="a client sends the sum of a class's features only if it is over so many of its examples: a "
        "sum over one is that example's feature. Classes that everybody holds back have no memory",
    )
    fit: Literal["clients", "server"] = Field(
        "clients",
        description="who fits the projection in a session: the clients that hold examples of its classes, or the "
        "server from the class memory alone, while clients only send sums",
    )
    settle: Annotated[int, Field(ge=0)] = Field(
        0,
        description="steps by which the server fits the projection to the memory when the beginning is over: what "
        "averaging unlike clients left askew, their pooled class means put right",
    )
    balance: bool = Field(
        True, description="in sessions: weight each class by 1 / its share of the batch, of examples and memories"
    )
    mixup: Share = Field(
        0.75, description="in sessions: chance that a step mixes projected features half and half"
    )
    copies: Count = Field(
        1, description="in sessions: how often the memory of a class of an earlier session is rehearsed per step"
    )

    _takes_unknown: bool = PrivateAttr(False)

    @property
    def takes_unknown(self) -> bool:
        """Where an operator starts sessions: data may hold classes that nobody has asked for yet."""
        return self._takes_unknown
