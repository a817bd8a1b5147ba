"""Pairwise preference: a person says which of two trials is better, by whatever the figures do not show.

The answers are a preferential study of optuna-dashboard beside the search's own, so its page shows and takes them
too. The ranking is Bradley and Terry's model over the trials (R. A. Bradley, M. E. Terry, Biometrika 39, 1952),
with a normal prior, instead of the dashboard's Gaussian process, which needs BoTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fednc.common.errors import ConfigError, MissingExtraError
from fednc.common.peer_text import markdown_text
from fednc.ops.search.plan import SearchPlan
from fednc.ops.search.strategies import load_optuna
from fednc.ops.search.study import SearchView, TrialView, load_study, open_storage, read_search, suggest

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_MIRRORS = "trial"  # attribute of a trial of the preferential study: the number of the search's trial
_ACTIVE = 4  # trials that the dashboard shows side by side
_PRIOR = 0.1  # precision of the prior on each utility
_STEPS = 50
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Ranking:
    """What a person seems to like, for trials in the order of `numbers`.

    Attributes:
        utility_N: higher is better; the chance that one trial is preferred to another is the logistic function of
            the difference.
        deviation_N: how uncertain each is.
        beats_NN: whether the trial of a row was preferred to that of a column, directly or by a chain of answers.
    """

    numbers: tuple[int, ...]
    utility_N: NDArray[np.float64]
    deviation_N: NDArray[np.float64]
    beats_NN: NDArray[np.bool_]

    @property
    def best(self) -> int:
        """The trial with the highest utility; of equal ones the first. Raises ConfigError: there is none."""
        if not self.numbers:
            raise ConfigError("no trial of this search has been completed yet, so none can be preferred")
        return self.numbers[int(np.argmax(self.utility_N))]

    def next_pair(self) -> tuple[int, int] | None:
        """The best trial and the one that could most easily be better; None if all others are known to be
        worse.
        """
        if not self.numbers:
            return None
        best = int(np.argmax(self.utility_N))
        open_N = ~self.beats_NN[best]
        open_N[best] = False
        if not open_N.any():
            return None
        hope_N = np.where(open_N, self.utility_N + self.deviation_N, -np.inf)
        return self.numbers[best], self.numbers[int(np.argmax(hope_N))]


def rank(numbers: Sequence[int], answers: Sequence[tuple[int, int]]) -> Ranking:
    """Fit the utilities to answers (better, worse), by Newton's method on the log-posterior, which is concave.

    Answers may contradict each other. Those about other trials are left out.
    """
    place, count = {number: index for index, number in enumerate(numbers)}, len(numbers)
    pairs = [(place[b], place[w]) for b, w in answers if b in place and w in place]
    utility_N = np.zeros(count)
    hessian_NN = np.eye(count) * _PRIOR
    for _ in range(_STEPS):
        gradient_N, hessian_NN = _derivatives(utility_N, pairs)
        step_N = np.linalg.solve(hessian_NN, gradient_N)
        utility_N = utility_N + step_N
        if np.abs(step_N).max(initial=0.0) < _TOLERANCE:
            break
    deviation_N = np.sqrt(np.diag(np.linalg.inv(hessian_NN))) if count else np.zeros(0)
    return Ranking(tuple(numbers), utility_N, deviation_N, _reach(pairs, count))


def _derivatives(
    utility_N: NDArray[np.float64], pairs: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradient, and negative Hessian, of the log-posterior."""
    gradient_N, hessian_NN = -_PRIOR * utility_N, np.eye(len(utility_N)) * _PRIOR
    for better, worse in pairs:
        surprise = 1 / (1 + np.exp(utility_N[better] - utility_N[worse]))
        weight = surprise * (1 - surprise)
        gradient_N[better] += surprise
        gradient_N[worse] -= surprise
        for one, other, sign in ((better, better, 1), (worse, worse, 1), (better, worse, -1), (worse, better, -1)):
            hessian_NN[one, other] += sign * weight
    return gradient_N, hessian_NN


def _reach(pairs: Sequence[tuple[int, int]], count: int) -> NDArray[np.bool_]:
    """The transitive closure of the answers."""
    beats_NN = np.zeros((count, count), bool)
    for better, worse in pairs:
        beats_NN[better, worse] = True
    for middle in range(count):
        beats_NN |= np.outer(beats_NN[:, middle], beats_NN[middle])
    return beats_NN


class Preferences:
    """The preferential study of a search."""

    def __init__(self, plan: SearchPlan) -> None:
        """Open it, and add the search's finished trials to it.

        Raises:
            ConfigError: the search has not begun. MissingExtraError: optuna-dashboard is not installed.
        """
        self._plan = plan
        self.view: SearchView = read_search(plan)
        optuna, dashboard = load_optuna(), _dashboard()
        self._study = dashboard.preferential.create_study(
            n_generate=_ACTIVE,
            storage=open_storage(plan.storage),
            sampler=optuna.samplers.RandomSampler(seed=plan.file.seed),
            study_name=f"{plan.name}-preference",
            load_if_exists=True,
        )
        self._mirror()

    @property
    def folder(self) -> Path:
        """The folder of the search."""
        return self._plan.folder

    @property
    def trials(self) -> dict[int, TrialView]:
        """The trials that can be compared, by number."""
        return {trial.number: trial for trial in self.view.trials if trial.state == "complete"}

    def ranking(self) -> Ranking:
        """The ranking by all answers so far, those given in the dashboard too."""
        answers = [(_number(b), _number(w)) for b, w in self._study.get_preferences(deepcopy=False)]
        return rank(list(self.trials), answers)

    def prefer(self, better: int, worse: int) -> None:
        """Record an answer. Raises ConfigError: no such finished trial, or twice the same."""
        if better == worse:
            raise ConfigError(f"trial {better} cannot be better than itself: name two trials")
        mirrored = {_number(one): one for one in self._study.get_trials(deepcopy=False)}
        for number in (better, worse):
            if number not in mirrored:
                known = ", ".join(map(str, sorted(self.trials)))
                raise ConfigError(f"trial {number} has not been completed; these can be compared: {known}")
        self._study.report_preference(mirrored[better], mirrored[worse])

    def propose(self, count: int) -> list[dict[str, Any]]:
        """Queue settings that a person may like, found by TPE on the utilities; those that were queued."""
        optuna, ranking = load_optuna(), self.ranking()
        utilities = dict(zip(ranking.numbers, ranking.utility_N.tolist(), strict=True))
        guess = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=self._plan.file.seed, n_startup_trials=0)
        )
        for trial in load_study(self._plan).get_trials(deepcopy=False):
            if trial.number in utilities:
                guess.add_trial(_copy(optuna, trial, utilities[trial.number]))
        proposed = []
        for _ in range(count):
            asked = guess.ask()
            values = self._plan.space.choose(asked._suggest)
            if suggest(self._plan, values, who="preference"):
                proposed.append(values)
        return proposed

    def _mirror(self) -> None:
        optuna = load_optuna()
        known = {_number(trial) for trial in self._study.get_trials(deepcopy=False)}
        for trial in load_study(self._plan).get_trials(deepcopy=False):
            if trial.state.name == "COMPLETE" and trial.number not in known:
                self._study.add_trial(_copy(optuna, trial, 0.0))
                self._note(trial.number)

    def _note(self, number: int) -> None:
        """What the dashboard shows of a trial: settings, values, and where its pictures are."""
        shown, dashboard = self.trials[number], _dashboard()
        lines = [f"**trial {number}**", ""]
        lines += [f"* {markdown_text(f'{key} = {value}')}" for key, value in shown.settings.items()]
        lines += [f"* {name}: {value:.6g}" for name, value in shown.values.items()]
        added = next(one for one in self._study.get_trials() if _number(one) == number)
        asked = load_optuna().trial.Trial(self._study._study, added._trial_id)
        dashboard.save_note(asked, "\n".join(lines))


def _dashboard() -> Any:
    try:
        import_module("optuna_dashboard.preferential")
    except ImportError as e:
        raise MissingExtraError("optuna-dashboard", "search", "a preference") from e
    return import_module("optuna_dashboard")


def _number(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get(_MIRRORS, -1))


def _without_steps(optuna: Any, distribution: Any) -> Any:
    """The range of a value that somebody has queued between two of its steps, past our own check."""
    kinds = (optuna.distributions.FloatDistribution, optuna.distributions.IntDistribution)
    if not isinstance(distribution, kinds) or distribution.log:
        return distribution
    step = None if isinstance(distribution, kinds[0]) else 1
    return type(distribution)(distribution.low, distribution.high, step=step)


def _copy(optuna: Any, trial: FrozenTrial, value: float) -> FrozenTrial:
    distributions = {
        key: one if one._contains(one.to_internal_repr(trial.params[key])) else _without_steps(optuna, one)
        for key, one in trial.distributions.items()
    }
    made: FrozenTrial = optuna.trial.create_trial(
        params=trial.params,
        distributions=distributions,
        value=value,
        user_attrs={_MIRRORS: trial.number},
    )
    return made
