"""The search itself: asks for settings, runs a trial over the clients that attend, tells the study what came out.

Called by `cli/search.py` and by pipelines. The clients come as a `RunSeries`, over the link or in one process;
this file knows neither. A search that was killed is continued: what it was running is put in the queue again.
"""

from __future__ import annotations

import logging
import math
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednc.common.address import without_secrets
from fednc.common.errors import ConfigError, DataError, DivergedError, FedncError, QuorumError
from fednc.common.files import private_folder, write_atomically
from fednc.ops.search.objectives import MAXIMIZE, MINIMIZE, OBJECTIVES, primary_of
from fednc.ops.search.plan import SearchPlan
from fednc.ops.search.space import Values
from fednc.ops.search.strategies import (
    EXHAUSTED,
    SUPERSEDED,
    curve_as_trial,
    load_optuna,
    place_of,
    prunes_by_primary,
)
from fednc.ops.search.study import (
    AGAIN,
    BEAT,
    BYTES_UP,
    CURVE,
    FOLDER,
    FOLLOWS,
    REASON,
    SEARCHER,
    SECONDS,
    SETTINGS,
    SUGGESTED,
    TRIES,
    SearchView,
    TrialView,
    curve_of,
    is_alive,
    open_study,
    view_of,
)
from fednc.server.run_series import RunSeries
from fednc.server.storage.folder_lock import claimed
from fednc.server.storage.history import History

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger("fednc.search")
Report = Callable[[TrialView], None]
_BEATS = 4  # per `stale_s`
_MOST_TRIES = 3  # of settings whose searcher ends each time: they may be what ends it
_WHO = "searcher"  # file with the id of the searcher of a folder


def search(plan: SearchPlan, clients: RunSeries, report: Report = lambda _: None) -> SearchView:
    """Do the trials that are missing, and return all of them.

    Args:
        plan: the search.
        clients: over which the trials are run.
        report: called with each trial that has ended.

    Raises:
        ConfigError, AddressError: the study cannot be opened, or another searcher uses the folder.
        QuorumError: too few clients, whatever the settings.
    """
    private_folder(plan.folder)
    with claimed(plan.folder):
        found = Searcher(plan, clients, report)
        found.work()
        return view_of(found.study, plan)


@dataclass
class _Progress:
    """One trial under way."""

    trial: Trial
    rounds: int
    curve: dict[int, float] = field(default_factory=dict)
    pruned: bool = False


class Searcher:
    """One process that does trials of a study; several may share it."""

    def __init__(self, plan: SearchPlan, clients: RunSeries, report: Report) -> None:
        self._plan, self._clients, self._report = plan, clients, report
        self._optuna = load_optuna()
        self._id = _id_of(plan.folder)
        self.study = open_study(plan)
        self._direction = MAXIMIZE if plan.primary.higher_is_better else MINIMIZE

    def work(self) -> None:
        """Do trials until there are enough, the sampler has no more, or an operator stops it."""
        with self._optuna_errors():
            while not self._clients.is_over and self._is_wanted():
                trial = self.study.ask()
                if place_of(self.study, self._frozen(trial)) >= self._plan.file.trials:
                    self._give_back(trial, "another searcher was quicker", again=False)
                    return
                self._try(trial)

    @contextmanager
    def _optuna_errors(self) -> Iterator[None]:
        try:
            yield
        except self._optuna.exceptions.StorageInternalError as e:
            said = f"storage {self._plan.storage}: {str(e).splitlines()[0]}"
            raise FedncError(without_secrets(said, self._plan.storage)) from None

    # ---- which trials ------------------------------------------------------------------------------------------

    def _is_wanted(self) -> bool:
        """Whether one more trial is missing. Takes back what killed searchers left."""
        self._take_back()
        if self.study.user_attrs.get(EXHAUSTED):
            return False
        trials = self.study.get_trials(deepcopy=False)
        counted = [one for one in trials if SUPERSEDED not in one.user_attrs and one.state.name != "WAITING"]
        return len(counted) < self._plan.file.trials

    def _take_back(self) -> None:
        """Running trials of this folder are left over, as only one process may use it; others may still live."""
        trials = self.study.get_trials(deepcopy=False)
        followed = {one.user_attrs.get(FOLLOWS) for one in trials}
        for one in trials:
            mine = one.user_attrs.get(SEARCHER) == self._id
            if one.state.name == "RUNNING" and (mine or not is_alive(one, self._plan.file.stale_s)):
                self._queue_again(one, "its searcher ended")
            elif mine and one.state.name == "FAIL" and AGAIN in one.user_attrs and one.number not in followed:
                self._enqueue_after(one)  # the searcher was killed before it had queued the settings

    def _queue_again(self, one: FrozenTrial, reason: str) -> None:
        """Another trial gets the same settings, and this one does not count, unless it went so too often."""
        tries = int(one.user_attrs.get(TRIES, 0)) + 1
        again = tries < _MOST_TRIES
        said = "its settings are tried again" if again else f"this happened {tries} times, so it has failed"
        try:
            if again:
                self._storage.set_trial_user_attr(one._trial_id, SUPERSEDED, True)
                self._storage.set_trial_user_attr(one._trial_id, AGAIN, True)
            self._storage.set_trial_user_attr(one._trial_id, REASON, f"{reason}; {said}")
            self._storage.set_trial_state_values(one._trial_id, self._optuna.trial.TrialState.FAIL)
        except (RuntimeError, self._optuna.exceptions.UpdateFinishedTrialError):
            return  # another searcher has taken it back
        if again:
            self._enqueue_after(one)

    def _enqueue_after(self, one: FrozenTrial) -> None:
        """Put the settings of a trial in the queue again."""
        kept = {name: one.user_attrs[name] for name in (SUGGESTED,) if name in one.user_attrs}
        fixed = {**one.system_attrs.get("fixed_params", {}), **one.params}
        tries = int(one.user_attrs.get(TRIES, 0)) + 1
        self.study.enqueue_trial(fixed, user_attrs={**kept, TRIES: tries, FOLLOWS: one.number})

    @property
    def _storage(self) -> BaseStorage:
        return self.study._storage

    def _give_back(self, trial: Trial, reason: str, *, again: bool) -> None:
        """The trial was not done."""
        if again:
            self._queue_again(self._frozen(trial), reason)
            return
        trial.set_user_attr(SUPERSEDED, True)
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=self._optuna.trial.TrialState.FAIL)

    # ---- one trial ---------------------------------------------------------------------------------------------

    def _try(self, trial: Trial) -> None:
        trial.set_user_attr(SEARCHER, self._id)
        trial.set_user_attr(BEAT, time.time())
        values = self._plan.space.choose(lambda key, distribution: trial._suggest(key, distribution))
        trial.set_user_attr(SETTINGS, values)
        with self._beating(trial):
            self._run(trial, values)
        self._report(self._view(trial))

    def _run(self, trial: Trial, values: Values) -> None:
        states = self._optuna.trial.TrialState
        folder = self._plan.folder / f"{self._plan.name}-{trial.number:04d}-{uuid.uuid4().hex[:8]}"
        trial.set_user_attr(FOLDER, str(folder.absolute()))
        started = time.monotonic()
        try:
            run = self._plan.trial_run(values)
            progress = _Progress(trial, run.all_rounds)
            done = self._clients.run(run, folder, lambda history: self._judge(progress, history))
        except DivergedError as e:
            self._end(trial, states.PRUNED, str(e))
            return
        except (ConfigError, DataError, QuorumError) as e:
            self._fail(trial, e)
            return
        except BaseException:  # Ctrl-C too: the settings are not to blame
            with suppress(Exception):
                self._give_back(trial, "it was interrupted", again=True)
            raise
        if not self._plan.file.keep_models:
            shutil.rmtree(folder / "model", ignore_errors=True)
        trial.set_user_attr(SECONDS, round(time.monotonic() - started, 3))
        trial.set_user_attr(BYTES_UP, done.summary["bytes_up"])
        if progress.pruned:
            self._end(trial, states.PRUNED, f"pruned after round {max(progress.curve)}")
        elif self._clients.is_over:  # it may lack rounds
            self._give_back(trial, "the search was stopped", again=True)
        else:
            self._complete(trial, done.result.history)

    def _judge(self, progress: _Progress, history: History) -> bool:
        """Whether the trial goes on after a round."""
        value = primary_of(history)
        number, trial = history.rounds[-1].round, progress.trial
        if value is None or history.judged[-1][0] != number or not math.isfinite(value):
            return True
        progress.curve[number] = value
        trial.set_user_attr(CURVE, progress.curve)
        progress.pruned = self._is_pruned(progress, history) and number < progress.rounds
        return not progress.pruned

    def _is_pruned(self, progress: _Progress, history: History) -> bool:
        number, trial = history.rounds[-1].round, progress.trial
        objectives = self._plan.file.objectives
        if len(objectives) == 1:
            value = OBJECTIVES[objectives[0]].of(history)
            if value is None or not math.isfinite(value):
                return False
            trial.report(value, number)
            return bool(trial.should_prune())
        ended = [
            curve_as_trial(curve_of(one), complete=one.state.name == "COMPLETE")
            for one in self.study.get_trials(deepcopy=False)
            if one.state.is_finished() and curve_of(one) and SUPERSEDED not in one.user_attrs
        ]
        return prunes_by_primary(self.study.pruner, self._direction, ended, progress.curve)

    def _complete(self, trial: Trial, history: History) -> None:
        best = self._plan.run.rounds.keep == "best"
        values = []
        for name in self._plan.file.objectives:
            value = primary_of(history, best=best) if name == "primary" else OBJECTIVES[name].of(history)
            if value is None or not math.isfinite(value):
                reason = f"the run has no value of {name}: {OBJECTIVES[name].about}"
                self._end(trial, self._optuna.trial.TrialState.FAIL, reason)
                return
            values.append(value)
        self.study.tell(trial, values)

    def _fail(self, trial: Trial, error: FedncError) -> None:
        """A trial that cannot be run. Raises QuorumError if the clients are missing whatever the settings."""
        if isinstance(error, QuorumError) and not self._clients.are_enough(self._plan.run):
            self._give_back(trial, "too few clients", again=True)
            raise error
        self._end(trial, self._optuna.trial.TrialState.FAIL, str(error))

    def _end(self, trial: Trial, state: Any, reason: str) -> None:
        trial.set_user_attr(REASON, reason[:2000])
        self.study.tell(trial, state=state)

    # ---- small parts -------------------------------------------------------------------------------------------

    @contextmanager
    def _beating(self, trial: Trial) -> Iterator[None]:
        """Signs of life while the block runs, for other searchers."""
        over, every_s = threading.Event(), self._plan.file.stale_s / _BEATS

        def beat() -> None:
            while not over.wait(every_s):
                with suppress(Exception):  # the next one may come through, and the trial itself reports errors
                    self._storage.set_trial_user_attr(trial._trial_id, BEAT, time.time())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _frozen(self, trial: Trial) -> FrozenTrial:
        found: FrozenTrial = self._storage.get_trial(trial._trial_id)
        return found

    def _view(self, trial: Trial) -> TrialView:
        return next(one for one in view_of(self.study, self._plan).trials if one.number == trial.number)


def _id_of(folder: Path) -> str:
    """Identifies the searcher of a folder over restarts."""
    path = folder / _WHO
    if not path.exists():
        write_atomically(path, f"{socket.gethostname()}/{uuid.uuid4().hex}".encode())
    return path.read_text(encoding="utf-8").strip()
