"""The table `[evaluate]` of the run file: the server's own test data.

A section like those of `tables.py`; read by the task's readers of data too, which leave test examples out of
training.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fednc.common.config.tables import LATER, Count, Section, Share


class EvaluateSection(Section):
    """Where the server's own test data lies. Clients always report on what they hold out."""

    test: str = Field("", description="data of the server, e.g. `digits` or `npz:test.npz`; empty: none")
    test_share: Annotated[Share, LATER] = Field(
        0.0,
        description="share of data without a test part that is tested on; clients leave the same examples out of "
        "theirs. 1: all of `test` is test data, and nobody trains on it; 0: `test` must have a test part",
    )
    batch: Count = Field(256, description="examples per evaluation batch")
