"""Samplers and pruners by Optuna's names, with their options checked before a search starts.

A sampler draws each trial from the search's seed and the number of the trial, so that a search that was killed and
continued chooses as one that was not. Optuna is imported on first use.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fednc.common import seeds
from fednc.common.errors import ConfigError, MissingExtraError
from fednc.ops.search.plan import SearchPlan, Strategy
from fednc.ops.search.space import Values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, TrialState

_SAMPLER, _PRUNER = "Sampler", "Pruner"
_ABSTRACT = ("BaseSampler", "BaseGASampler", "BasePruner")
_ONE_OBJECTIVE = ("CmaEsSampler",)
# These follow one sequence over all trials, which a seed for each trial would break.
_ONE_SEED = ("QMCSampler", "GridSampler", "BruteForceSampler")
# With several objectives: the pruners whose verdict follows from the values of the rounds alone.
STATELESS = ("MedianPruner", "NopPruner", "PercentilePruner", "ThresholdPruner")
_OURS = ("seed", "search_space", "independent_sampler", "base_sampler", "wrapped_pruner")
# What Optuna imports only when such a sampler draws its first trial.
_PACKAGES = {"CmaEsSampler": "cmaes", "GPSampler": "scipy", "QMCSampler": "scipy", "WilcoxonPruner": "scipy"}
# Deep code of Optuna that would otherwise tell people about options that they have not set.
_QUIET = {"warn_independent_sampling": False, "warn_asynchronous_seeding": False}
EXHAUSTED = "exhausted"  # attribute of a study whose sampler has nothing left to try
SUPERSEDED = "superseded"  # attribute of a trial that was put in the queue again, or was one too many


def load_optuna() -> Any:
    """Optuna, quiet. Raises MissingExtraError."""
    try:
        import optuna
    except ImportError as e:
        raise MissingExtraError("optuna", "ops", "a search") from e
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def names(kind: str) -> list[str]:
    """All samplers (`Sampler`) or pruners (`Pruner`), without that ending."""
    module = _module(kind)
    return sorted(n.removesuffix(kind) for n in module.__all__ if n.endswith(kind) and n not in _ABSTRACT)


def make_sampler(plan: SearchPlan) -> BaseSampler:
    """The sampler of a search. Raises ConfigError, MissingExtraError."""
    load_optuna()
    wanted = plan.file.sampler
    full = _full_name(wanted.name, _SAMPLER)
    if full in _ONE_OBJECTIVE and len(plan.file.objectives) > 1:
        raise ConfigError(f"sampler {wanted.name}: takes one objective; with several use TPE, NSGA-II or NSGA-III")
    _sampler(wanted, plan, 0)  # whether it can be made at all
    return _for_each_trial(lambda seed: _sampler(wanted, plan, seed), plan.file.seed, one_seed=full in _ONE_SEED)


def make_pruner(plan: SearchPlan) -> BasePruner:
    """The pruner of a search. Raises ConfigError."""
    load_optuna()
    wanted = plan.file.pruner
    full = _full_name(wanted.name, _PRUNER)
    if len(plan.file.objectives) > 1 and full not in STATELESS:
        allowed = ", ".join(name.removesuffix(_PRUNER) for name in STATELESS)
        raise ConfigError(f"pruner {wanted.name}: with several objectives there are {allowed}")
    return _pruner(wanted)


def prunes_by_primary(
    pruner: BasePruner, direction: str, earlier: Sequence[FrozenTrial], curve: Mapping[int, float]
) -> bool:
    """Whether a trial with this curve of the primary metric is to be pruned, in a search with several objectives.

    Optuna prunes studies with one objective only. So the pruner judges a study of the primary metric alone, made
    of the curves of the `earlier` trials.

    Args:
        pruner: one of `STATELESS`.
        direction: of the primary metric.
        earlier: trials that have ended, with their curves as intermediate values.
        curve: the value after each round so far.
    """
    optuna = load_optuna()
    study = optuna.create_study(direction=direction)
    study.add_trials(list(earlier))
    trial = study.ask()
    for number, value in curve.items():
        trial.report(value, number)
    frozen = next(one for one in study.get_trials(deepcopy=False) if one.number == trial.number)
    return bool(pruner.prune(study, frozen))


def curve_as_trial(curve: Mapping[int, float], *, complete: bool) -> FrozenTrial:
    """A trial of the study of the primary metric alone; see `prunes_by_primary`."""
    optuna = load_optuna()
    state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED
    last = curve[max(curve)]
    made: FrozenTrial = optuna.trial.create_trial(state=state, value=last, intermediate_values=dict(curve))
    return made


def _sampler(wanted: Strategy, plan: SearchPlan, seed: int) -> BaseSampler:
    full = _full_name(wanted.name, _SAMPLER)
    options = dict(wanted.options)
    ours: Values = {"seed": seed}
    if full == "GridSampler":
        ours["search_space"] = _grid(plan)
    if full == "PartialFixedSampler":
        base = Strategy(name=options.pop("base", "TPE"))
        options["fixed_params"] = plan.space.labels(dict(_pairs(options.pop("fixed", {}))))
        ours = {"base_sampler": _sampler(base, plan, seed)}
    made: BaseSampler = _make(full, _SAMPLER, options, ours)
    return made


def _pairs(table: Values, prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        found += _pairs(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found


def _pruner(wanted: Strategy) -> BasePruner:
    full, options, ours = _full_name(wanted.name, _PRUNER), dict(wanted.options), Values()
    if full == "PatientPruner":
        inner = options.pop("wrapped", None)
        ours["wrapped_pruner"] = None if inner is None else _pruner(Strategy(name=inner))
    made: BasePruner = _make(full, _PRUNER, options, ours)
    return made


def _grid(plan: SearchPlan) -> dict[str, list[Any]]:
    """All values of each key. Raises ConfigError: a key has infinitely many, or depends on another."""
    if plan.space.is_conditional:
        raise ConfigError(
            "sampler Grid: takes no `when`; use BruteForce, which tries every combination that can be"
        )
    found = {}
    for key, dimension in plan.space.dimensions.items():
        if dimension.choices is not None:
            found[key] = [dimension.label(choice) for choice in dimension.choices]
            continue
        if not dimension.is_int and dimension.step is None:
            raise ConfigError(f"sampler Grid: space.{key}: give a `step`, or `choices`")
        distribution: Any = dimension.distribution()
        count = int((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
        found[key] = [distribution.low + place * distribution.step for place in range(count)]
    return found


def _make(full: str, kind: str, options: Values, ours: Values) -> Any:
    made = getattr(_module(kind), full)
    takes = inspect.signature(made.__init__).parameters
    allowed = [name for name in takes if name not in (*_OURS, "self", "args", "kwargs", "fixed_params")]
    for name in options:
        if name not in allowed and name != "fixed_params":
            has = f"it has: {', '.join(allowed)}" if allowed else "it has none"
            raise ConfigError(f"{kind.lower()} {full.removesuffix(kind)}: no option {name!r}; {has}")
    quiet = {name: value for name, value in _QUIET.items() if name in takes and name not in options}
    package = _PACKAGES.get(full, "optuna")
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, "search", f"{kind.lower()} {full.removesuffix(kind)}")
    fitting = {name: value for name, value in ours.items() if name in takes}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return made(**options, **quiet, **fitting)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{kind.lower()} {full.removesuffix(kind)}: {e}") from e


def _full_name(name: str, kind: str) -> str:
    """`NSGA-II`, `NSGAII` and `NSGAIISampler` are one. Raises ConfigError."""
    wanted = name.replace("-", "").replace("_", "").lower().removesuffix(kind.lower())
    for found in names(kind):
        if found.lower() == wanted:
            return f"{found}{kind}"
    raise ConfigError(f"{kind.lower()} {name!r}: there are {', '.join(names(kind))}")


def _module(kind: str) -> Any:
    optuna = load_optuna()
    return optuna.samplers if kind == _SAMPLER else optuna.pruners


def _for_each_trial(make: Callable[[int], BaseSampler], seed: int, *, one_seed: bool) -> BaseSampler:
    """A sampler that is made anew for each trial, from `seed` and the place of the trial unless it has one
    seed.
    """
    from optuna.samplers import BaseSampler

    class ForEachTrial(BaseSampler):  # type: ignore[misc]
        """Passes everything on to the sampler of the current trial."""

        def __init__(self) -> None:
            self._now = make(seed)

        def before_trial(self, study: Study, trial: FrozenTrial) -> None:
            place = place_of(study, trial)
            self._now = make(seed if one_seed else seeds.derive(seed, "trial", place) % (1 << 32))
            self._now.before_trial(study, trial)

        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            found: dict[str, BaseDistribution] = self._now.infer_relative_search_space(study, trial)
            return found

        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            found: dict[str, Any] = self._now.sample_relative(study, trial, search_space)
            return found

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            return self._now.sample_independent(study, trial, param_name, param_distribution)

        def after_trial(
            self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
        ) -> None:
            try:
                self._now.after_trial(study, trial, state, values)
            except RuntimeError:  # Study.stop() of Grid and BruteForce, outside of Study.optimize
                study.set_user_attr(EXHAUSTED, True)

    return ForEachTrial()


def place_of(study: Study, trial: FrozenTrial) -> int:
    """How many trials that count came before: those that were queued again do not."""
    before = [one for one in study.get_trials(deepcopy=False) if one.number < trial.number]
    return sum(SUPERSEDED not in one.user_attrs for one in before)
