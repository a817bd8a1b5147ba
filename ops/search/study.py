"""The study of a search in its storage: opened, continued, read. Storage by URL: SQLite, a journal, any database.

What other parts of fednc read (`read_search`) has no object of Optuna in it, so that a console can show a search
while searchers work on it.
"""

from __future__ import annotations

import fcntl
import math
import sqlite3
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednc.common.address import without_secrets
from fednc.common.errors import AddressError, ConfigError
from fednc.common.files import private_folder
from fednc.ops.search.objectives import MAXIMIZE
from fednc.ops.search.plan import SearchPlan
from fednc.ops.search.space import Values
from fednc.ops.search.strategies import SUPERSEDED, load_optuna, make_pruner, make_sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

JOURNAL = "journal:"
_BUSY_S = 60  # how long one searcher waits for another one's write
IDENTITY = "fednc"  # attribute of a study: what must not change while it goes on
METRIC = "metric"  # attribute of a study: name of the primary metric
# Attributes of a trial.
FOLDER, REASON, CURVE, BEAT, SEARCHER, SETTINGS = "folder", "reason", "curve", "beat", "searcher", "settings"
SECONDS, BYTES_UP, SUGGESTED, TRIES = "seconds", "bytes_up", "suggested_by", "tries"
AGAIN, FOLLOWS = "again", "follows"  # its settings are queued again; number of the trial whose settings these are


@dataclass(frozen=True, kw_only=True)
class TrialView:
    """One trial, as plain values.

    Attributes:
        state: `complete`, `pruned`, `failed`, `running`, `waiting`.
        settings: keys of the run file and their values.
        values: by objective; empty unless complete.
        curve: primary metric by round, as far as it came.
        reason: why it was pruned or failed.
        folder: its run folder, on the machine of its searcher.
    """

    number: int
    state: str
    settings: Values
    values: dict[str, float]
    curve: dict[int, float]
    reason: str = ""
    folder: str = ""
    suggested_by: str = ""
    seconds: float | None = None
    bytes_up: int | None = None
    superseded: bool = False


@dataclass(frozen=True, kw_only=True)
class SearchView:
    """A search as it stands.

    Attributes:
        objectives: name and direction (`maximize` or `minimize`) of each.
        best: numbers of the best trials: one, or with several objectives those that no other trial beats in all.
    """

    name: str
    metric: str
    objectives: dict[str, str]
    trials: list[TrialView] = field(default_factory=list)
    best: list[int] = field(default_factory=list)

    @property
    def best_trial(self) -> TrialView | None:
        """The best one; of several, the one that is best by the first objective."""
        if not self.best:
            return None
        first, direction = next(iter(self.objectives.items()))
        sign = 1 if direction == MAXIMIZE else -1
        found = [trial for trial in self.trials if trial.number in self.best]
        return max(found, key=lambda trial: (sign * trial.values[first], -trial.number))


def open_storage(url: str, *, make: bool = True) -> BaseStorage:
    """The storage at `url`: `sqlite:///PATH`, `journal:PATH`, or a database that SQLAlchemy opens.

    Raises:
        ConfigError: no such storage, and `make` is false. AddressError: it cannot be opened.
    """
    optuna = load_optuna()
    journal = Path(url.removeprefix(JOURNAL)) if url.startswith(JOURNAL) else None
    path = journal or (Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None)
    if path is not None:
        if not make and not path.exists():
            raise ConfigError(f"there is no study at {url}: `fednc search FILE` makes it")
        private_folder(path.parent)
    try:
        opened: BaseStorage
        if journal is not None:
            backend = optuna.storages.journal.JournalFileBackend(str(journal))
            opened = optuna.storages.JournalStorage(backend)
        else:
            with _alone(path):
                opened = optuna.storages.RDBStorage(url, engine_kwargs=_engine(url))
        return opened
    except Exception as e:  # of SQLAlchemy, of a driver, of the file system
        said = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise AddressError(without_secrets(f"storage {url}: cannot be opened: {said}", url)) from None


@contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """One process at a time makes the tables of a new file."""
    if path is None:
        yield
        return
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _engine(url: str) -> dict[str, Any]:
    """Several searchers write to one file: each waits for the others."""
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": _BUSY_S, "factory": _Connection}}
    return {"pool_pre_ping": True}


class _Connection(sqlite3.Connection):
    """Writes ahead, without waiting for the disk each time: a dozen values of each trial are written.

    Nothing is lost when a process is killed; a power cut may cost the last trials, but never the file.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


def open_study(plan: SearchPlan) -> Study:
    """The study of a search, made if it is new. Raises ConfigError: it belongs to another search."""
    sampler, pruner = make_sampler(plan), make_pruner(plan)
    optuna = load_optuna()
    with _refused(plan):
        study = optuna.create_study(
            storage=open_storage(plan.storage),
            study_name=plan.name,
            sampler=sampler,
            pruner=pruner,
            directions=list(plan.directions),
            load_if_exists=True,
        )
    return _checked(study, plan)


def load_study(plan: SearchPlan) -> Study:
    """The study of a search that has begun. Raises ConfigError."""
    optuna = load_optuna()
    with _refused(plan):
        found: Study = optuna.load_study(study_name=plan.name, storage=open_storage(plan.storage, make=False))
    return found


@contextmanager
def _refused(plan: SearchPlan) -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError) as e:
        said = str(e).strip("'\"")
        raise ConfigError(
            f"study {plan.name!r} in {plan.shown_storage}: {said}; choose another `name` or `storage`"
        ) from e


def _checked(study: Study, plan: SearchPlan) -> Study:
    known = study.user_attrs.get(IDENTITY)
    if known is None or (known == plan.identity() and study.metric_names is None):
        study.set_metric_names(list(plan.file.objectives))
        study.set_user_attr(METRIC, plan.primary.name)
        study.set_user_attr(IDENTITY, plan.identity())  # last: whoever finds it finds the others too
    elif known != plan.identity():
        raise ConfigError(
            f"study {plan.name!r} in {plan.shown_storage} was made with another space, other objectives or "
            "another run file, so its trials cannot be compared with new ones. Choose another `name`, or another "
            "`storage`"
        )
    return study


# ---- reading ----------------------------------------------------------------------------------------------------


def read_search(plan: SearchPlan) -> SearchView:
    """All trials of a search. Raises ConfigError: it has not begun."""
    return view_of(load_study(plan), plan)


def read_studies(url: str) -> list[SearchView]:
    """Every search in a storage, without its search file. Raises ConfigError, AddressError."""
    optuna = load_optuna()
    storage = open_storage(url, make=False)
    found = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    return [view_of(study) for study in found if IDENTITY in study.user_attrs and study.metric_names]


def view_of(study: Study, plan: SearchPlan | None = None) -> SearchView:
    """A study as plain values; with a plan also the settings of trials that have not begun."""
    names = study.metric_names or ["primary"]
    directions = [direction.name.lower() for direction in study.directions]
    trials = [_view(trial, names, plan) for trial in study.get_trials(deepcopy=False)]
    complete = any(trial.state == "complete" for trial in trials)
    best = sorted(trial.number for trial in study.best_trials) if complete else []
    return SearchView(
        name=study.study_name,
        metric=str(study.user_attrs.get(METRIC, "")),
        objectives=dict(zip(names, directions, strict=True)),
        trials=trials,
        best=best,
    )


def _view(trial: FrozenTrial, names: list[str], plan: SearchPlan | None) -> TrialView:
    attributes, state = trial.user_attrs, trial.state.name.lower()
    fixed = trial.system_attrs.get("fixed_params", {})
    settings = attributes.get(SETTINGS) or (plan.space.values(fixed) if plan else fixed)
    values = dict(zip(names, trial.values or [], strict=False)) if state == "complete" else {}
    return TrialView(
        number=trial.number,
        state="failed" if state == "fail" else state,
        settings=settings,
        values={name: value for name, value in values.items() if math.isfinite(value)},
        curve=curve_of(trial),
        reason=attributes.get(REASON, ""),
        folder=attributes.get(FOLDER, ""),
        suggested_by=attributes.get(SUGGESTED, ""),
        seconds=attributes.get(SECONDS),
        bytes_up=attributes.get(BYTES_UP),
        superseded=SUPERSEDED in attributes,
    )


def curve_of(trial: FrozenTrial) -> dict[int, float]:
    """The primary metric by round, as far as the trial came."""
    kept: Mapping[str, float] = trial.user_attrs.get(CURVE, {})
    return {int(number): value for number, value in kept.items()}


# ---- a person's guess -------------------------------------------------------------------------------------------


def suggest(plan: SearchPlan, values: Values, who: str = "") -> bool:
    """Put settings in the queue: a searcher tries them next. Keys left out are chosen by the sampler.

    Returns whether they are new: settings that wait already are not queued twice.

    Raises:
        ConfigError: a key or value is not in the space, or the settings do not go together.
    """
    labels = plan.space.labels(values)
    if not labels:
        raise ConfigError("nothing to try: give at least one KEY=VALUE")
    if set(_needed(plan, values)) == set(values):
        plan.trial_run(values)
    study = open_study(plan)
    if any(_waits(trial, labels) for trial in study.get_trials(deepcopy=False)):
        return False
    study.enqueue_trial(labels, user_attrs={SUGGESTED: who or "a person"})
    return True


def _needed(plan: SearchPlan, values: Values) -> Values:
    """The keys that a trial with these values has."""

    def ask(key: str, distribution: Any) -> Any:
        del distribution
        dimension = plan.space.dimensions[key]
        return dimension.label(values.get(key, dimension.corners()[0]))

    return plan.space.choose(ask)


def _waits(trial: FrozenTrial, labels: Values) -> bool:
    return bool(trial.state.name == "WAITING" and trial.system_attrs.get("fixed_params") == labels)


def is_alive(trial: FrozenTrial, stale_s: float) -> bool:
    """Whether the searcher of a running trial has shown a sign of life lately."""
    began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return time.time() - float(trial.user_attrs.get(BEAT, began)) < stale_s
