"""The space of a search: keys of a run file, the values that each may have, and when it is set at all.

Read from TOML, written back as plain values, turned into Optuna's distributions, and applied to a run file. Knows
no study and runs nothing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fednc.common.config.run import RunConfig, explain, parse_run
from fednc.common.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = Any  # of a key in TOML: a number, a text, a truth value, or a list of these
Values = dict[str, Value]  # by key, as "train.lr"

# What every trial of a search shares: the process, the clients and their parts of the data.
_FIXED = {
    "name": "trials get names of their own",
    "server": "the server is the same for all trials",
    "track": "trials are told to the study",
    "split": "clients get their part of the data when they come",
    "task.name": "clients have loaded the data of one task",
}
_PAGE = "docs/search.md"


class Dimension(BaseModel):
    """The values that one key may have: `choices`, or numbers from `low` to `high`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choices: tuple[Value, ...] | None = None
    low: int | float | None = None
    high: int | float | None = None
    step: Annotated[int | float | None, Field(gt=0)] = None
    log: bool = False
    type: Literal["int", "float"] | None = None
    when: dict[str, tuple[Value, ...]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, values: Any) -> Any:
        """`when = { key = value }` is short for a list of one value."""
        if isinstance(values, dict) and isinstance(values.get("when"), dict):
            when = {
                key: value if isinstance(value, list | tuple) else [value] for key, value in _flat(values["when"])
            }
            return {**values, "when": when}
        return values

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        numbers = self.low is not None or self.high is not None
        if (self.choices is None) == (not numbers):
            raise ValueError("give either `choices`, or `low` and `high`")
        if self.choices is not None:
            self._check_choices(self.choices)
        else:
            self._check_range()
        return self

    def _check_choices(self, choices: tuple[Value, ...]) -> None:
        if self.step is not None or self.log or self.type:
            raise ValueError("`step`, `log` and `type` go with `low` and `high`, not with `choices`")
        labels = [label_of(choice) for choice in choices]
        if not labels or len({(type(label), label) for label in labels}) < len(labels):
            raise ValueError("`choices` needs at least one value, and each only once")

    def _check_range(self) -> None:
        if self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("`low` and `high` must both be there, and `low` must be the smaller one")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("`log` needs a `low` above 0, and no `step`")
        if self.is_int and any(
            isinstance(v, float) and not v.is_integer() for v in (self.low, self.high, self.step)
        ):
            raise ValueError("a whole number is wanted, but `low`, `high` or `step` is none")

    @property
    def is_int(self) -> bool:
        """Whether the values are whole numbers: as `type` says, else if all numbers given are."""
        if self.type:
            return self.type == "int"
        return all(isinstance(v, int) for v in (self.low, self.high, self.step) if v is not None)

    def distribution(self) -> BaseDistribution:
        """As Optuna has it. Choices that Optuna cannot store have their JSON as label."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution([label_of(choice) for choice in self.choices])
        assert self.low is not None
        assert self.high is not None
        if self.is_int:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def value(self, label: Value) -> Value:
        """The value of the run file behind one of Optuna's values."""
        if self.choices is None:
            return label
        return next(c for c in self.choices if _same(label_of(c), label))

    def label(self, value: Value) -> Value:
        """Optuna's value for a value that a person names. Raises ValueError: it is none of the dimension's."""
        if self.choices is not None:
            found = [label_of(c) for c in self.choices if _same(c, value) or _same(label_of(c), value)]
            if not found:
                raise ValueError(f"{value!r} is none of {', '.join(map(repr, self.choices))}")
            return found[0]
        assert self.low is not None
        assert self.high is not None
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            raise ValueError(f"{value!r} is not a number from {self.low} to {self.high}")
        if self.is_int and int(value) != value:
            raise ValueError(f"{value!r} is not a whole number")
        if self.step is not None:  # Optuna takes a value between two steps, and then cannot read it any more
            nearest = self.low + self.step * round((value - self.low) / self.step)
            if abs(value - nearest) > 1e-8 * self.step:
                raise ValueError(f"{value!r} is not {self.low} and some steps of {self.step}; next is {nearest:g}")
            distribution: Any = self.distribution()
            value = min(value, distribution.high)  # the last step, as Optuna rounds it
        return int(value) if self.is_int else float(value)

    def corners(self) -> tuple[Value, ...]:
        """All choices, or the smallest and the largest number."""
        if self.choices is not None:
            return self.choices
        kind: Callable[[Any], Value] = int if self.is_int else float
        return kind(self.low), kind(self.high)

    def to_plain(self) -> Values:
        """As in the file, without what has its default."""
        return self.model_dump(mode="json", exclude_defaults=True)


@dataclass(frozen=True)
class Space:
    """All dimensions by key; a key comes after those that its `when` names."""

    dimensions: Mapping[str, Dimension] = field(default_factory=dict)

    @classmethod
    def parse(cls, table: Mapping[str, Any], source: str = "search file") -> Space:
        """The table `[space]`, with keys as `"train.lr"` or as nested tables. Raises ConfigError."""
        found = {}
        for key, values in _leaves(table):
            try:
                found[key] = Dimension.model_validate(values)
            except ValidationError as e:
                raise ConfigError(explain(e, source, prefix=f"space.{key}", page=_PAGE)) from e
        if not found:
            raise ConfigError(f"{source}: [space] is empty: name at least one key to search, e.g. train.lr")
        return cls(_ordered(found, source))

    def to_plain(self) -> dict[str, Values]:
        """What `parse` reads."""
        return {key: dimension.to_plain() for key, dimension in self.dimensions.items()}

    @property
    def is_conditional(self) -> bool:
        """Whether some keys are set in some trials only."""
        return any(dimension.when for dimension in self.dimensions.values())

    def choose(self, ask: Callable[[str, BaseDistribution], Value]) -> Values:
        """The values of one trial: asks for each key whose condition holds, in order."""
        found: Values = {}
        for key, dimension in self.dimensions.items():
            if _holds(dimension, found):
                found[key] = dimension.value(ask(key, dimension.distribution()))
        return found

    def labels(self, values: Values) -> Values:
        """Optuna's values for the values that a person names. Raises ConfigError."""
        found = {}
        for key, value in values.items():
            if key not in self.dimensions:
                known = ", ".join(self.dimensions)
                raise ConfigError(f"{key}: not in the space of this search; it has: {known}")
            try:
                found[key] = self.dimensions[key].label(value)
            except ValueError as e:
                raise ConfigError(f"{key}: {e}") from e
        return found

    def values(self, labels: Values) -> Values:
        """The values of the run file behind Optuna's values of one trial."""
        return {key: self.dimensions[key].value(v) for key, v in labels.items() if key in self.dimensions}

    def apply(self, run: Values, values: Values, source: str = "trial") -> RunConfig:
        """The run of one trial: `run` with these values, and without the keys whose condition does not hold.

        Raises:
            ConfigError: the values do not go together.
        """
        changed = without_unset(run, self, values)
        for key, value in values.items():
            put(changed, key, value)
        return parse_run(changed, source=source)

    def check(self, run: Values, source: str = "search file") -> None:
        """Try every corner of every dimension. Raises ConfigError: a key or value that no run may have."""
        for key in self.dimensions:
            fixed = next((fixed for fixed in _FIXED if key == fixed or key.startswith(f"{fixed}.")), None)
            if fixed:
                raise ConfigError(f"{source}: space.{key}: cannot be searched, because {_FIXED[fixed]}")
        for key, made in self._corners(run, source):
            self._check_type(key, made, source)

    def corners(self, run: Values, source: str = "search file") -> Iterator[RunConfig]:
        """Runs in which every choice of every key occurs, and the ends of every range. Raises ConfigError."""
        return (made for _, made in self._corners(run, source))

    def _corners(self, run: Values, source: str) -> Iterator[tuple[str, RunConfig]]:
        for values, key in self._tries():
            yield key, self.apply(run, values, source=f"{source}: space.{key} with {_shown(values)}")

    def _tries(self) -> Iterator[tuple[Values, str]]:
        """Each corner of each dimension, with the keys above it such that its condition holds."""
        first: Values = {}
        for key, dimension in self.dimensions.items():
            first[key] = dimension.corners()[0]
        for key, dimension in self.dimensions.items():
            for corner in dimension.corners():
                wanted = {**first, key: corner}
                for name in self._above(key):
                    wanted |= {parent: allowed[0] for parent, allowed in self.dimensions[name].when.items()}
                wanted[key] = corner
                yield self._active(wanted), key

    def _above(self, key: str) -> list[str]:
        """The key itself and the keys that its condition rests on."""
        found, todo = [key], list(self.dimensions[key].when)
        while todo:
            found.append(todo.pop())
            todo += self.dimensions[found[-1]].when
        return found

    def _active(self, wanted: Values) -> Values:
        found: Values = {}
        for key, dimension in self.dimensions.items():
            if _holds(dimension, found):
                found[key] = wanted[key]
        return found

    def _check_type(self, key: str, run: RunConfig, source: str) -> None:
        """`low = 0, high = 1` of a key with decimals would try 0 and 1 only."""
        dimension = self.dimensions[key]
        if (
            dimension.choices is None
            and dimension.is_int
            and not dimension.type
            and isinstance(_get(run, key), float)
        ):
            raise ConfigError(
                f"{source}: space.{key}: the key takes decimals, but only whole numbers would be tried: write "
                f'{float(dimension.low or 0)} and {float(dimension.high or 0)}, or type = "int"'
            )


def label_of(choice: Value) -> Value:
    """What Optuna stores of a choice: itself, or the JSON of a list or table."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)


def without_unset(run: Values, space: Space, values: Values) -> Values:
    """A copy of `run` without the keys of the space that have no value: their condition does not hold."""
    changed = copy.deepcopy(run)
    for key in space.dimensions:
        if key not in values:
            _remove(changed, key)
    return changed


def put(tables: Values, key: str, value: Value) -> None:
    """Set `key`, as "train.lr", in nested tables. Raises ConfigError: a part of it is not a table."""
    *path, last = key.split(".")
    for part in path:
        tables = tables.setdefault(part, {})
        if not isinstance(tables, dict):
            raise ConfigError(f"{key}: {part!r} is not a table in the run file")
    tables[last] = value


def _remove(tables: Values, key: str) -> None:
    *path, last = key.split(".")
    for part in path:
        tables = tables.get(part, {})
    tables.pop(last, None)


def _get(run: BaseModel, key: str) -> Value:
    found: Any = run
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else getattr(found, part, None)
    return found


def _holds(dimension: Dimension, chosen: Values) -> bool:
    return all(
        key in chosen and any(_same(chosen[key], value) for value in allowed)
        for key, allowed in dimension.when.items()
    )


def _same(one: Value, other: Value) -> bool:
    """Whether both are equal and of one kind: `True` is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dimensions in nested tables: a table of tables is a part of a key."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        inner = isinstance(value, Mapping) and value and all(isinstance(one, Mapping) for one in value.values())
        if inner and set(value) != {"when"}:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _ordered(found: Mapping[str, Dimension], source: str) -> dict[str, Dimension]:
    for key, dimension in found.items():
        for parent, allowed in dimension.when.items():
            _check_parent(f"{source}: space.{key}: when", parent, found.get(parent), allowed)
    graph = {key: list(dimension.when) for key, dimension in found.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as e:
        raise ConfigError(f"{source}: [space]: the conditions go in a circle: {' -> '.join(e.args[1])}") from e
    depth = {key: place for place, key in enumerate(order)}
    return {key: found[key] for key in sorted(found, key=depth.__getitem__)}


def _check_parent(where: str, parent: str, dimension: Dimension | None, allowed: tuple[Value, ...]) -> None:
    if dimension is None or dimension.choices is None:
        raise ConfigError(f"{where}: {parent} must be a key of this space that has `choices`")
    for value in allowed:
        if not any(_same(value, choice) for choice in dimension.choices):
            raise ConfigError(f"{where}: {parent} is never {value!r}; its choices: {list(dimension.choices)}")


def _shown(values: Values) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())
