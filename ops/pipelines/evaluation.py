"""The step `evaluate`: how good the new model is, on the clients and on the test data, and beside the served one.

Called through `steps.py`.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from fednc.common.model_export import load, read_manifest
from fednc.common.tasks.evaluation import evaluate
from fednc.common.tasks.metric_info import MetricInfo
from fednc.ops.pipelines.work import PipelineWork
from fednc.ops.registry.names import CHAMPION
from fednc.ops.run_folders.folder import ROUNDS, SUMMARY


def inputs(work: PipelineWork) -> dict[str, Any]:
    """The model, the test data and the version that is served now."""
    return {
        "weights_sha256": read_manifest(work.federated).weights_sha256,
        "run": work.run.digest,
        "test": [work.run.evaluate.test, work.inputs["test"]],
        "served": served_now(work),
    }


def served_now(work: PipelineWork) -> list[Any]:
    """[version, digest] that the deployed alias points to; [] if it points nowhere.

    If that is this very run already, the version before it: a pipeline that runs again compares with the same one.
    """
    alias, name = work.file.deploy.alias if work.file.deploy else CHAMPION, work.file.model
    rows = {row.version: row for row in work.registry.rows(name)}
    version = work.registry.aliases(name).get(alias, 0) if rows else 0
    if version in rows and rows[version].run == work.federated.name:
        moves = [move for move in work.registry.history(name, alias) if move.after == version]
        version = moves[-1].before if moves else 0
    return [version, rows[version].digest] if version in rows else []


def evaluated(work: PipelineWork) -> dict[str, Any]:
    """The figures of the new model, and the primary metric of the served one on the same test data."""
    summary = json.loads((work.federated / SUMMARY).read_bytes())
    primary = MetricInfo(**summary["metric"])
    metrics = _last_metrics(work.federated)
    value = metrics.get(primary.name)
    found = {
        "metric": primary.to_json(),
        "value": value,
        "metrics": metrics,
        "worst_client": summary.get("worst_client", {}),
        "spread": summary.get("spread", {}),
        "served": _served(work, primary),
        "ended": summary.get("ended", "finished"),
    }
    shown = "not measured" if value is None else primary.show(value)
    return {**found, "note": f"{primary.name} {shown}{_compared(found['served'], primary)}"}


def _compared(served: dict[str, Any], primary: MetricInfo) -> str:
    if not served:
        return ""
    value = served["value"]
    told = "not measured" if value is None else primary.show(value)
    return f"; version {served['version']}, which is served: {told}"


def _last_metrics(folder: Path) -> dict[str, float]:
    """Finite metrics of the last evaluated round: on test data, else on what the clients held out."""
    for record in reversed(json.loads((folder / ROUNDS).read_bytes())):
        found = record.get("test") or record.get("pooled") or {}
        if found:
            return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}
    return {}


def _served(work: PipelineWork, primary: MetricInfo) -> dict[str, Any]:
    """Version and primary metric of the served model on the run's test data; {} if none is served."""
    now = served_now(work)
    if not now:
        return {}
    found = {"version": now[0], "digest": now[1], "value": None}
    spec = work.run.evaluate.test
    if not spec:
        return found
    model = load(work.registry.resolve(f"{work.file.model}/{now[0]}").folder)
    if model.task.name != work.run.task.name:
        return found
    data = model.task.load_test(spec)
    known = data.of_classes(0, len(model.class_names)) if model.task.takes_sessions else data
    guide = replace(model.guide, temperature=1.0)  # a run measures before its temperature is fitted
    measured = model.task.measure(evaluate(model.task, model.model, known, guide, model.run.evaluate.batch))
    value = measured.get(primary.name)
    return {**found, "value": value if value is not None and math.isfinite(value) else None}
