"""Runs the steps of a pipeline in order. Each is recorded before and after, so that a killed pipeline continues.

A step whose inputs have the digest of an earlier time is not done again. Called by `fednc pipeline`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fednc.common import fault_injection
from fednc.common.config.run import RunConfig
from fednc.common.errors import FedncError
from fednc.common.files import private_folder
from fednc.common.peer_text import one_line
from fednc.ops.pipelines.digests import data_digest, digest_of
from fednc.ops.pipelines.journal import SCHEDULE, Cause, Journal, PipelineRun, StepRecord, StepState
from fednc.ops.pipelines.pipeline_file import PipelineFile
from fednc.ops.pipelines.steps import Step, steps_of
from fednc.ops.pipelines.work import Carriers, GateRejectedError, GateWaitsError, PipelineWork
from fednc.server.storage.folder_lock import claimed

_MOST_TEXT = 500  # characters of a note


@dataclass(frozen=True)
class Runner:
    """Runs one pipeline.

    Attributes:
        waits: whether the gate waits for a person.
    """

    file: PipelineFile
    run: RunConfig
    carriers: Carriers
    tell: Callable[[str], None] = lambda _text: None
    waits: bool = True

    def __call__(self, cause: Cause) -> PipelineRun:
        """Continue the run that has not ended, if its inputs are still the same; else begin a new one.

        Raises:
            AddressError: another process runs this pipeline.
            GateRejectedError, GateWaitsError: the gate did not open.
            FedncError: a step failed.
        """
        private_folder(self.file.place)
        with claimed(self.file.place):
            journal, inputs = Journal(self.file.place), inputs_of(self.file, self.run)
            current = self._current(journal, cause, inputs)
            work = PipelineWork(
                self.file, journal, current, self.carriers, inputs, tell=self.tell, waits=self.waits
            )
            self._drive(work)
        return current

    def _current(self, journal: Journal, cause: Cause, inputs: dict[str, str]) -> PipelineRun:
        names = [step.name for step in steps_of(self.file)]
        last = journal.latest()
        # What the schedule asks for is a new run, even if the last one failed: its time counts from now.
        is_new = last is not None and (last.inputs != inputs or (last.failed and cause.kind == SCHEDULE))
        if last is not None and not last.ended and is_new:
            journal.replaced(last)
        if last is None or last.ended:
            current = journal.begin(cause, self.file.on, names, inputs)
            self.tell(f"run {current.number} begins: {cause.text}")
            return current
        self.tell(f"run {last.number} is continued; it began because {last.why}")
        kept = {step.name: step for step in last.steps if step.state.is_over or step.state is StepState.ASKING}
        last.steps = [kept.get(name, StepRecord(name)) for name in names]  # a gate asks since it first asked
        last.causes.append(cause)
        last.on = self.file.on
        last.save()
        return last

    def _drive(self, work: PipelineWork) -> None:
        for step in steps_of(self.file):
            record = work.current.step(step.name)
            try:
                self._one(step, record, work)
            except GateWaitsError:
                raise
            except GateRejectedError as e:
                self._end(work.current, record, StepState.REJECTED, str(e))
                work.current.ended_at = round(time.time(), 3)
                work.current.save()
                raise
            except FedncError as e:
                self._end(work.current, record, StepState.FAILED, str(e))
                raise
        work.current.ended_at = round(time.time(), 3)
        work.current.save()

    def _one(self, step: Step, record: StepRecord, work: PipelineWork) -> None:
        """Do a step, unless it does not apply or its result is known."""
        if reason := step.skip(work):
            record.digest = ""
            self._end(work.current, record, StepState.SKIPPED, reason)
            return
        record.digest = digest_of(step.inputs(work))
        known = work.journal.result(step.name, record.digest)
        if known is not None and step.holds(work, known):
            work.results[step.name] = known
            done = record.state is StepState.DONE  # by this very run, before it was interrupted
            self._end(work.current, record, StepState.DONE if done else StepState.CACHED, str(known["note"]))
            return
        record.state, record.note = StepState.RUNNING, ""
        record.began_at = record.began_at or round(time.time(), 3)  # phases of a run begin before their turn here
        work.current.save()
        fault_injection.at("pipeline.begin")
        found = step.does(work)
        fault_injection.at("pipeline.did")
        work.journal.keep(step.name, record.digest, found)
        work.results[step.name] = found
        fault_injection.at("pipeline.kept")
        record.seconds = record.seconds or round(time.time() - record.began_at, 3)
        self._end(work.current, record, StepState.DONE, str(found["note"]))
        fault_injection.at("pipeline.recorded")

    def _end(self, current: PipelineRun, record: StepRecord, state: StepState, note: str) -> None:
        record.state, record.note = state, one_line(note, _MOST_TEXT)
        current.save()
        self.tell(f"{record.name}: {state}. {record.note}")


def inputs_of(file: PipelineFile, run: RunConfig) -> dict[str, str]:
    """Digests of each client's data, the test data and the run file, by name; empty where they cannot be read
    here.
    """
    found = {f"client {name}": data_digest(spec) for name, spec in file.clients.items()}
    return {**found, "test": data_digest(run.evaluate.test) if run.evaluate.test else "", "run file": run.digest}
