"""The search file: which run, which settings are tried, how they are chosen, and what counts. Read from TOML.

`fednc search` reads it, and every part of this folder gets it. Knows no study.
"""

from __future__ import annotations

import copy
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fednc.common.address import without_secrets
from fednc.common.config.run import RunConfig, explain, parse_run
from fednc.common.errors import ConfigError
from fednc.common.tasks import discovery
from fednc.common.tasks.metric_info import MetricInfo
from fednc.ops.search.objectives import OBJECTIVES
from fednc.ops.search.space import Space, Values, put

_PAGE = "docs/search.md"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Strategy(BaseModel):
    """A sampler or a pruner by Optuna's name, with its options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> Values:
        """All keys but the name."""
        return dict(self.model_extra or {})


class LocalClients(BaseModel):
    """Clients in the process of the search itself, one after the other."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str | dict[str, str]
    clients: Annotated[int, Field(ge=1)] = 1
    val_share: Annotated[float, Field(ge=0, le=0.9)] = 0.1
    device: str = "auto"

    @property
    def specs(self) -> dict[str, str]:
        """The data spec of each client, by name."""
        if isinstance(self.data, dict):
            return self.data
        return {f"client-{number:02d}": self.data for number in range(self.clients)}


class SearchFile(BaseModel):
    """The keys of a search file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    space: dict[str, Any]
    name: Annotated[str, Field(pattern=NAME)] = ""
    trials: Annotated[int, Field(ge=1)] = 20
    seed: Annotated[int, Field(ge=0)] = 0
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = ("primary",)
    sampler: Strategy = Strategy(name="TPE")
    pruner: Strategy = Strategy(name="Nop")
    set: dict[str, Any] = Field(default_factory=dict)
    local: LocalClients | None = None
    storage: str = ""
    folder: str = ""
    stale_s: Annotated[float, Field(gt=0)] = 120.0
    keep_models: bool = True

    @field_validator("sampler", "pruner", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("objectives")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in OBJECTIVES]:
            raise ValueError(f"{unknown[0]!r} is no objective; there are {', '.join(OBJECTIVES)}")
        if len(set(value)) < len(value):
            raise ValueError("each objective only once")
        return value


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A checked search.

    Attributes:
        base: the run file with `[set]`, as plain values; trials change it.
        run: the same, parsed.
        folder: where trials, pictures and the default storage are.
    """

    name: str
    file: SearchFile
    space: Space
    base: Values
    run: RunConfig
    primary: MetricInfo
    folder: Path
    source: str

    @property
    def storage(self) -> str:
        """URL of the storage: `sqlite:///PATH`, `journal:PATH`, or whatever SQLAlchemy opens."""
        return self.file.storage or f"sqlite:///{self.folder / 'study.db'}"

    @property
    def shown_storage(self) -> str:
        """The same for people and programs: without a password."""
        return without_secrets(self.storage, self.storage)

    @property
    def directions(self) -> tuple[str, ...]:
        """`maximize` or `minimize` for each objective."""
        return tuple(OBJECTIVES[name].direction(self.primary) for name in self.file.objectives)

    def trial_run(self, values: Values) -> RunConfig:
        """The run of a trial. Raises ConfigError: these values do not go together."""
        return self.space.apply(self.base, values)

    def identity(self) -> str:
        """What must stay the same while a study goes on, as JSON: a study of other trials cannot be compared."""
        kept = {"space": self.space.to_plain(), "objectives": self.file.objectives, "run": self.run.decisive()}
        return json.dumps(kept, sort_keys=True)


def read_search_file(path: Path) -> SearchPlan:
    """Read and check everything that can be checked before a client is asked.

    Raises:
        ConfigError: the file, the run file that it names, or one of its keys cannot be used.
    """
    values = _read(path, "search file")
    try:
        file = SearchFile.model_validate(values)
    except ValidationError as e:
        raise ConfigError(explain(e, str(path), page=_PAGE)) from e
    tables, name = _read(path.parent / file.run, f"run file of {path}"), file.name or path.stem
    return plan_of(file, tables, name, path.parent / (file.folder or f"searches/{name}"), str(path))


def plan_of(file: SearchFile, tables: Values, name: str, folder: Path, source: str) -> SearchPlan:
    """A search over the run file `tables`, checked. Raises ConfigError.

    Args:
        source: what messages name: where the keys of the search are.
    """
    base = copy.deepcopy(tables)
    for key, value in _settings(file.set):
        put(base, key, value)
    run = parse_run(base, source=f"{source}: its run file{' with [set]' if file.set else ''}")
    space = Space.parse(file.space, source=source)
    space.check(base, source=source)
    primary = discovery.get(run).primary
    return SearchPlan(
        name=name, file=file, space=space, base=base, run=run, primary=primary, folder=folder, source=source
    )


def run_file_of(plan: SearchPlan) -> Values:
    """The run file that a search names, as plain values, without `[set]`. Raises ConfigError."""
    return _read(Path(plan.source).parent / plan.file.run, "run file")


def _settings(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`[set]` with keys as `"rounds.total"` or as nested tables."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            found += _settings(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"cannot read {what} {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{what} {path} is not UTF-8 text (byte {e.start}); save it as UTF-8") from e
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{what} {path} is not TOML: {e}") from e
