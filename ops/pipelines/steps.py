"""The steps of a pipeline, in order: what each depends on, when it does not apply, and what it does.

    check -> search -> statistics -> init -> train -> sessions -> evaluate -> gate -> register -> deploy

`statistics` to `sessions` are phases of one federated run (`phases.py`). Called by the runner, which keeps the
results and decides what need not be done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fednc.ops.pipelines import check, deployment, evaluation, gate, phases, search
from fednc.ops.pipelines.pipeline_file import PipelineFile
from fednc.ops.pipelines.work import PipelineWork

Found = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        inputs: JSON values that its result depends on.
        does: does it; returns what it found as JSON values, with a line for people under `note`.
        skip: why it does not apply; empty if it does.
        holds: whether an earlier result for the same inputs can still be used.
    """

    name: str
    inputs: Callable[[PipelineWork], Found]
    does: Callable[[PipelineWork], Found]
    skip: Callable[[PipelineWork], str] = lambda _work: ""
    holds: Callable[[PipelineWork, Found], bool] = lambda _work, _found: True


STEPS = {
    step.name: step
    for step in (
        Step("check", check.inputs, check.check),
        Step("search", search.inputs, search.searched, search.no_search),
        Step("statistics", phases.statistics_inputs, phases.statistics, holds=phases.can_continue),
        Step("init", phases.init_inputs, phases.init, phases.no_init, holds=phases.can_continue),
        Step("train", phases.train_inputs, phases.train, holds=phases.can_continue),
        Step("sessions", phases.session_inputs, phases.sessions, phases.no_sessions, holds=phases.is_there),
        Step("evaluate", evaluation.inputs, evaluation.evaluated),
        Step("gate", gate.inputs, gate.ask, gate.no_gate, holds=gate.is_approved),
        Step("register", deployment.register_inputs, deployment.registered, holds=deployment.is_registered),
        Step(
            "deploy",
            deployment.deploy_inputs,
            deployment.deployed,
            deployment.no_deploy,
            holds=deployment.is_deployed,
        ),
    )
}


def steps_of(file: PipelineFile) -> list[Step]:
    """The steps in the order in which the file asks for them."""
    names = list(STEPS)
    if file.gate and file.gate.before == "deploy":
        names.remove("gate")
        names.insert(names.index("deploy"), "gate")
    return [STEPS[name] for name in names]
