"""Which settings of a search matter, by Optuna's cheap measure (PED-ANOVA), which needs no further package."""

from __future__ import annotations

from fednc.ops.search.plan import SearchPlan
from fednc.ops.search.strategies import load_optuna
from fednc.ops.search.study import load_study

_LEAST = 8  # trials below which a share means nothing


def importance(plan: SearchPlan) -> dict[str, float]:
    """The share of each key that all completed trials have, by the first objective; {} with too few trials."""
    optuna, study = load_optuna(), load_study(plan)
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(done) < _LEAST or len({trial.values[0] for trial in done}) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: trial.values[0]
        )
    except (RuntimeError, ValueError):  # no key is in all trials, or none has two values
        return {}
    return {key: float(share) for key, share in found.items()}
