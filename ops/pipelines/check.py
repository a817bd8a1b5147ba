"""The step `check`: the run file, the plug-ins, and all data that this machine can read, before anything is
trained.
"""

from __future__ import annotations

from typing import Any

from fednc.common.distributions import distributions_of
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Part, Task
from fednc.ops import quarantine
from fednc.ops.pipelines.pipeline_file import PipelineFile
from fednc.ops.pipelines.work import PipelineWork

_OF_A_PLUGIN = ("kind", "name", "distribution", "version", "licence", "code_sha256", "outcome")


def inputs(work: PipelineWork) -> dict[str, Any]:
    """Everything that the run depends on. Raises ConfigError: a plug-in is in quarantine."""
    return {
        "run": work.run.decisive(),
        "data": data_of(work),
        "clients": clients_of(work.file),
        "plugins": plugins_of(work),
        **code(work),
    }


def plugins_of(work: PipelineWork) -> list[dict[str, str]]:
    """The plug-ins that the run uses, and those that a search before it may try, with licence, version and hash.

    Raises ConfigError: one is in quarantine.
    """
    runs = [work.run]
    if work.file.search and "search" not in work.results:
        plan = work.file.search_plan(work.file.name, work.file.place)
        runs += [plan.run, *plan.space.corners(plan.base)]
    admitted = quarantine.admit(*runs, unchecked=not work.file.checked_plugins)
    return [{key: str(value) for key, value in one.to_json().items() if key in _OF_A_PLUGIN} for one in admitted]


def data_of(work: PipelineWork) -> dict[str, str]:
    """Digests of all data, by name."""
    return {name: digest for name, digest in work.inputs.items() if name != "run file"}


def clients_of(file: PipelineFile) -> list[list[str]]:
    """[name, data spec] of each client, in order: with a split, the order decides who gets which part."""
    return [[name, spec] for name, spec in file.clients.items()]


def code(work: PipelineWork) -> dict[str, Any]:
    """Name, version and hash of fednc and of the plug-ins that the run uses."""
    return {"code": [{**one, "provides": None} for one in distributions_of(work.run)]}


def check(work: PipelineWork) -> dict[str, Any]:
    """Build frame and model, read the test data and each client's data. Raises ConfigError, DataError."""
    run = work.run
    task = discovery.get(run)
    task.frame(run.seed)
    parameters = sum(each.numel() for each in task.new_model().parameters())
    tested = task.load_test(run.evaluate.test).examples if run.evaluate.test else 0
    examples = _examples(work, task)
    told = f", {sum(examples.values()):,} examples at {len(examples)} clients" if examples else ""
    return {
        "classes": list(task.class_names),
        "parameters": parameters,
        "test_examples": tested,
        "examples": examples,
        "plugins": plugins_of(work),
        "note": f"{run.task.name}, {run.method.name}, {parameters:,} parameters{told}",
    }


def _examples(work: PipelineWork, task: Task) -> dict[str, int]:
    """The number of examples of each client whose data are here."""
    split, found = work.run.split, {}
    for index, (name, spec) in enumerate(work.file.clients.items()):
        part = Part(index, split.parts) if split else None
        found[name] = task.load_train(spec, part, split).examples
    return found
