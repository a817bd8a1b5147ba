"""One part of every example, as data manifests name it: a tensor, or a column of a table."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=200)]


class DataColumn(BaseModel):
    """Name and type of one part of every example.

    Attributes:
        shape: of this part in one example; empty for a single value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    dtype: Annotated[str, Field(max_length=40)]
    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=1 << 40)], ...], Field(max_length=16)] = ()
