"""Whether a new run of a pipeline is due, and why: new data, a schedule, or a verdict that was waited for.

Called by `fednc pipeline watch`, which then runs the pipeline. Reads the journal; changes nothing. Alarms and the
data of clients that come by themselves are heard by a look (`look.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from fednc.common.config.run import RunConfig
from fednc.ops.pipelines.gate import timeout_text, verdict_on, waits_still_s
from fednc.ops.pipelines.journal import DATA, OPERATOR, SCHEDULE, VERDICT, Cause, Journal, PipelineRun
from fednc.ops.pipelines.pipeline_file import PipelineFile
from fednc.ops.pipelines.runner import inputs_of


def due(file: PipelineFile, run: RunConfig) -> Cause | None:
    """The reason to run the pipeline now; None if there is none."""
    last = Journal(file.place).latest()
    if last is None:
        return Cause(OPERATOR, "the pipeline has never run")
    return next(_causes(file, run, last), None)


def _causes(file: PipelineFile, run: RunConfig, last: PipelineRun) -> Iterator[Cause]:
    if file.triggers.data:
        yield from _new_data(last, inputs_of(file, run))
    yield from _schedule(file, last)
    yield from _unfinished(file, last)


def _new_data(last: PipelineRun, inputs: dict[str, str]) -> Iterator[Cause]:
    changed = [name for name in inputs if inputs[name] != last.inputs.get(name)]
    if changed:
        told = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        yield Cause(DATA, f"changed since the last run: {told}")


def _schedule(file: PipelineFile, last: PipelineRun) -> Iterator[Cause]:
    every_h = file.triggers.every_h
    if every_h and (last.ended or last.failed) and time.time() - last.began_at >= 3600 * every_h:
        yield Cause(SCHEDULE, f"{every_h:g} h have passed since the last run began")


def _unfinished(file: PipelineFile, last: PipelineRun) -> Iterator[Cause]:
    """A run that was killed, or whose gate has an answer or no time left. One that failed needs another cause."""
    if last.ended or last.failed:
        return
    if not last.asks:
        yield Cause(OPERATOR, "the last run was interrupted")
    elif verdict_on(file, last.step("gate").note) is not None:
        yield Cause(VERDICT, "the gate has been answered")
    elif file.gate and file.gate.on_timeout == "reject" and not waits_still_s(file.gate, last.step("gate")):
        yield Cause(SCHEDULE, timeout_text(file.gate))
