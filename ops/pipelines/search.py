"""The step `search`: tries settings over the pipeline's clients; the steps after it use those of the best trial.

Called through `steps.py`. The trials themselves are `ops/search`.
"""

from __future__ import annotations

from typing import Any

from fednc.common.config.run import parse_run
from fednc.common.errors import RunFailedError
from fednc.ops.pipelines.check import clients_of, code, data_of, plugins_of
from fednc.ops.pipelines.digests import digest_of
from fednc.ops.pipelines.pipeline_file import SearchTable
from fednc.ops.pipelines.work import PipelineWork, SearchOrder
from fednc.ops.search.plan import SearchPlan
from fednc.ops.search.space import put, without_unset

SEARCHES = "searches"  # folder of all searches, in the pipeline's
_DIGITS = 12


def no_search(work: PipelineWork) -> str:
    """Why nothing is searched."""
    return "" if work.file.search else "the pipeline file has no [search]"


def inputs(work: PipelineWork) -> dict[str, Any]:
    """The search, the run file, data and code."""
    return {
        "search": _table(work).model_dump(mode="json"),
        "tables": parse_run(work.file.tables).decisive(),
        "data": data_of(work),
        "clients": clients_of(work.file),
        "number": 0 if work.file.clients else work.current.number,
        "plugins": plugins_of(work),
        **code(work),
    }


def searched(work: PipelineWork) -> dict[str, Any]:
    """Do the trials that are missing. Raises RunFailedError: none has been completed."""
    plan = _plan(work)
    view = work.carriers.search(SearchOrder(work.file, plan, work.file.clients, work.tell))
    best = view.best_trial
    if best is None:
        failed = "; ".join(trial.reason for trial in view.trials if trial.reason)
        raise RunFailedError(f"[search]: no trial of {len(view.trials)} was completed: {failed}")
    tables = without_unset(work.file.tables, plan.space, best.settings)
    for key, value in best.settings.items():
        put(tables, key, value)
    settings = ", ".join(f"{key} = {_shown(value)}" for key, value in best.settings.items())
    values = ", ".join(f"{name} {value:.4g}" for name, value in best.values.items())
    return {
        "trial": best.number,
        "trials": len(view.trials),
        "settings": best.settings,
        "values": best.values,
        "tables": tables,
        "note": f"trial {best.number} of {len(view.trials)} is best: {settings} ({values})",
    }


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(work: PipelineWork) -> SearchTable:
    assert work.file.search is not None
    return work.file.search


def _plan(work: PipelineWork) -> SearchPlan:
    """The search, in a folder of its own for each set of inputs: a killed one continues there."""
    name = f"{work.file.name}-{digest_of(inputs(work))[:_DIGITS]}"
    return work.file.search_plan(name, work.journal.place / SEARCHES / name)
