"""`[[sessions]]` of the run file: classes that come later. `run.py` combines it with the other tables.

Add new keys here, with the description for `docs/config.md`. Knows no task and reads no file.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fednc.common.config.tables import Count, Positive, Section


class ClassSessionSection(Section):
    """A class session: classes that come later, and how the model learns them. One table per session."""

    classes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="names of the new classes, which get the next vertices; empty: the operator names them"
    )
    start: Literal["at-once", "operator"] = Field(
        "at-once",
        description="`at-once`: when the previous session has ended; `operator`: on `fednc session next`",
    )
    shots: Annotated[int, Field(ge=0)] = Field(
        0, description="examples per new class that a client trains on, drawn with the run's seed; 0: all"
    )
    rounds: Count = Field(3, description="rounds of the session")
    min_clients: Count = Field(
        1, description="clients with examples of new classes needed to start, and replies needed in a round"
    )
    epochs: Annotated[int, Field(ge=0)] = Field(
        0, description="passes over these examples per round; 0: as in train.epochs"
    )
    lr_factor: Positive = Field(1.0, description="learning rate of the session as a multiple of train.lr")

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        if not self.classes and self.start == "at-once":
            raise ValueError(
                "classes: name the new classes, or set start = 'operator' to have an operator name them later"
            )
        return self
