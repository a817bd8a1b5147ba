"""The keys of `[task]` for tables: which columns are inputs, what is predicted, which model.

Read by the task at the start of a run; docs/config.md is generated from it. The run file names every column that
is used, so all sites agree on the inputs; a file may have further columns and any order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fednc.common.tasks.classifier import ClassifierOptions
from fednc.common.tasks.data_column import DataColumn
from fednc.tasks.tabular.cells import MISSING, comparable

Name = Annotated[str, Field(min_length=1)]


def _as_text(value: Any) -> Any:
    """Numbers of a run file as the text that a table would have: `classes = [0, 1]` is `["0", "1"]`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return comparable(str(value)) if is_number else value


Value = Annotated[Name, BeforeValidator(_as_text)]


class TabularOptions(ClassifierOptions):
    """Tables: one row per example, inputs and target by column."""

    kind: Literal["classification", "regression"] = Field(
        "classification", description="whether `target` is a class or a number"
    )
    target: Name = Field(description="column to predict")
    classes: tuple[Value, ...] = Field(
        (),
        description="for classification: the values of the target, as text or numbers; class i has vertex i of "
        "the frame. Of two classes, the second is the positive one",
    )
    numeric: tuple[Name, ...] = Field((), description="columns with numbers")
    boolean: tuple[Name, ...] = Field((), description="columns with yes or no: true/false, yes/no, t/f, y/n, 1/0")
    categorical: dict[Name, tuple[Value, ...]] = Field(
        {},
        description='columns with categories: `sex = ["f", "m"]` lists them; `ward = []` does not, and then they '
        "are counted in hash buckets over all sites, so that no text leaves its site",
    )
    bounds: dict[Name, tuple[float, float]] = Field(
        {},
        description="smallest and largest value of a numeric column; values beyond are clipped, and the server "
        "refuses sums that such values cannot have",
    )
    split_column: str = Field(
        "", description="column that says `train` or `test` for each row; empty: there is none"
    )
    id: str = Field(
        "",
        description="column that names the rows in the output of `fednc predict`; it is not an input, and is "
        "not needed for training",
    )
    missing: tuple[str, ...] = Field(MISSING, description="texts that mean a missing value")
    model: Literal["mlp", "linear"] = Field("mlp", description="`mlp`: hidden layers with ReLU; `linear`: none")
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        (64, 64), min_length=1, description="for `mlp`: widths of the hidden layers"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="for `mlp`: share of hidden values that are dropped in training"
    )
    embedding: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="width of the trained vector of each category; 0: one input per category (one-hot)"
    )
    min_count: Annotated[int, Field(ge=1)] = Field(
        10,
        description="rows that an undeclared category needs over all sites; rarer ones count as `other`",
    )
    most_categories: Annotated[int, Field(ge=1, le=4096)] = Field(
        32, description="undeclared categories of a column that are told apart, the most frequent ones"
    )
    buckets: Annotated[int, Field(ge=16, le=65536)] = Field(
        4096, description="hash buckets in which the categories of an undeclared column are counted"
    )

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns that become numbers: numeric ones, then boolean ones."""
        return (*self.numeric, *self.boolean)

    @property
    def inputs(self) -> tuple[str, ...]:
        """All input columns, in the order of the model's inputs."""
        return (*self.numbers, *self.categorical)

    @property
    def schema_of_rows(self) -> tuple[DataColumn, ...]:
        """What a row consists of, for data manifests."""
        kinds = {"number": self.numeric, "boolean": self.boolean, "category": self.categorical}
        inputs = [DataColumn(name=name, dtype=kind) for kind, names in kinds.items() for name in names]
        target = "category" if self.kind == "classification" else "number"
        return (*inputs, DataColumn(name=self.target, dtype=target))

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        if not self.inputs:
            yield "no input columns: name some in numeric, boolean or categorical"
        uses = Counter([*self.inputs, self.target, *filter(None, [self.split_column, self.id])])
        for name in (name for name, times in uses.items() if times > 1):
            yield f"column {name!r} is named twice; give each column one role"
        if self.kind == "classification" and len(self.classes) < 2:
            yield "classes: name at least two values of the target, or set kind to 'regression'"
        if self.kind == "regression" and (self.classes or self.class_weights):
            yield "classes and class_weights are for classification: leave them out, or change kind"
        for where, values in (("classes", self.classes), *self.categorical.items()):
            same = [value for value, n in Counter(map(comparable, values)).items() if n > 1]
            if same:
                yield f"{where}: {same[0]!r} is listed twice"
        bounded = {*self.numeric, *([self.target] if self.kind == "regression" else [])}
        for name, (low, high) in self.bounds.items():
            if name not in bounded:
                yield f"bounds: {name!r} is not a numeric column"
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                yield f"bounds: {name!r} needs two finite numbers, the smaller one first"
