"""The table `[personal]` of the run file: models that clients make for themselves after the last round."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fednc.common.config.tables import Count, NonNegative, Positive, Section


class PersonalSection(Section):
    """After the last round each client fine-tunes the final model on its own training data and reports how good it
    is before and after on what it holds out. The personal model stays on the client, in its folder `--state`.
    """

    train: Literal["head", "all"] = Field(
        "head",
        description="what is trained: the layers behind the backbone (for a task that says which ones those are), "
        "or all that the run trains",
    )
    epochs: Count = Field(5, description="passes over the client's training data")
    lr: NonNegative = Field(0.0, description="learning rate; 0: `train.lr`. It stays constant")
    tau: Positive = Field(
        10.0,
        description="for read-outs from the class memory: a client with n examples of a class reads it out from "
        "its own mean with weight n / (n + tau), and from the class memory with the rest",
    )
