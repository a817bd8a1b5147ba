"""The table `[evaluate]` of the run file: the server's own test data.

A section like those in `tables.py`. The tasks' data readers use it too, because they leave test examples out of
the training data.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fednc.common.config.tables import LATER, Count, Section, Share


class EvaluateSection(Section):
    """The server's own test data. Clients always report on the data that they hold out."""

    test: str = Field("", description="test data of the server, e.g. `digits` or `npz:test.npz`; empty: none")
    test_share: Annotated[Share, LATER] = Field(
        0.0,
        description="for data without a test part: share of it to test on; clients leave the same examples out of "
        "their training data. 1: all of `test` is test data, and nobody trains on it; 0: `test` must have a test "
        "part",
    )
    metric: Annotated[str, LATER] = Field(
        "",
        description="the primary metric, which history, status and reports show; one of the task's metrics. "
        "Empty: the task's first",
    )
    batch: Count = Field(256, description="examples per evaluation batch")
    temperature: Annotated[bool, LATER] = Field(
        True,
        description="after the last round, fit a temperature for a classifier's confidences on what the clients "
        "hold out of training: one short exchange, and the model's weights stay the same",
    )
    drift_rate: Annotated[Share, LATER] = Field(
        0.001,
        description="tell if the class means of a client are farther from those of the others than usual: the "
        "wanted probability of a false alarm, per client and round; 0: do not look. Needs a read-out from the "
        "class memory in the metric of the variation within classes, and three clients",
    )
