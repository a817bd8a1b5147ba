"""What a pipeline remembers on disk: each of its runs with the states of its steps, and the results of steps.

    pipelines/NAME/runs/000001/state.json    why it began, and how each step stands
    pipelines/NAME/results/STEP-DIGEST.json  what a step found for inputs with that digest
    pipelines/NAME/federated/                the run folders
    pipelines/NAME/bases/                    states after the rounds before the first session

Every file is replaced in one step, so a process that is killed leaves a state to continue from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from fednc.common.errors import DataError
from fednc.common.files import private_folder, write_atomically

STATE, RUNS, RESULTS, FEDERATED, BASES = "state.json", "runs", "results", "federated", "bases"
_FORMAT = 1
_DIGITS = 32  # of a digest, in file names


class StepState(StrEnum):
    """How a step stands."""

    PENDING = "pending"
    RUNNING = "running"
    ASKING = "waits for a person"
    DONE = "done"
    CACHED = "cached"
    SKIPPED = "skipped"
    REJECTED = "rejected"
    REPLACED = "replaced by a newer run"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether the pipeline may go on to the next step."""
        return self in (StepState.DONE, StepState.CACHED, StepState.SKIPPED)


@dataclass
class StepRecord:
    """One step of one run of a pipeline.

    Attributes:
        digest: of its inputs; empty until they are known, and for a step that was skipped.
        note: what it found, or why it was skipped or failed, in one line.
        began_at: Unix time.
    """

    name: str
    state: StepState = StepState.PENDING
    digest: str = ""
    note: str = ""
    began_at: float = 0.0
    seconds: float = 0.0


OPERATOR, DATA, ALARM, SCHEDULE, VERDICT = "operator", "data", "alarm", "schedule", "verdict"  # kinds of a cause


@dataclass(frozen=True)
class Cause:
    """Why a run of a pipeline began.

    Attributes:
        kind: operator, data, alarm, schedule or verdict.
        text: the reason in one sentence.
        key: what tells this cause from earlier ones of its kind, so that it starts one run only.
    """

    kind: str
    text: str
    key: str = ""


@dataclass
class PipelineRun:
    """One run of a pipeline: the content of its state.json.

    Attributes:
        causes: why it began, then why it was continued.
        on: where clients work.
        inputs: digests of the data and of the run file when it began, by name.
    """

    folder: Path
    number: int
    causes: list[Cause]
    on: str
    began_at: float
    steps: list[StepRecord] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    ended_at: float = 0.0

    @property
    def why(self) -> str:
        """Why it began."""
        return self.causes[0].text

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do: all steps are over, a person rejected, or a newer run replaced it."""
        states = [step.state for step in self.steps]
        closed = StepState.REJECTED in states or StepState.REPLACED in states
        return bool(states) and (closed or all(state.is_over for state in states))

    @property
    def failed(self) -> bool:
        """Whether a step failed: it is done again only for another cause."""
        return any(step.state is StepState.FAILED for step in self.steps)

    @property
    def asks(self) -> bool:
        """Whether it waits for a person."""
        return any(step.state is StepState.ASKING for step in self.steps)

    def step(self, name: str) -> StepRecord:
        """The record of a step, added at the end if it is new."""
        for step in self.steps:
            if step.name == name:
                return step
        self.steps.append(StepRecord(name))
        return self.steps[-1]

    def save(self) -> None:
        """Write it. Raises OSError."""
        values = asdict(self)
        del values["folder"]
        write_atomically(self.folder / STATE, json.dumps({"format": _FORMAT, **values}, indent=2).encode())


class Journal:
    """The runs and results of one pipeline."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def runs(self) -> list[PipelineRun]:
        """All runs, the oldest first. Raises DataError: a state cannot be read."""
        return [_read(path) for path in sorted((self.place / RUNS).glob(f"*/{STATE}"))]

    def latest(self) -> PipelineRun | None:
        """The last run; None if there was none. Raises DataError."""
        paths = sorted((self.place / RUNS).glob(f"*/{STATE}"))
        return _read(paths[-1]) if paths else None

    def begin(self, cause: Cause, on: str, steps: Iterable[str], inputs: dict[str, str]) -> PipelineRun:
        """Begin a new run."""
        last = self.latest()
        number = last.number + 1 if last else 1
        folder = self.place / RUNS / f"{number:06d}"
        private_folder(folder)
        records = [StepRecord(name) for name in steps]
        run = PipelineRun(folder, number, [cause], on, round(time.time(), 3), records, inputs)
        run.save()
        return run

    def result(self, step: str, digest: str) -> dict[str, Any] | None:
        """What a step found for inputs with this digest; None if it has not been done or cannot be read."""
        try:
            found = json.loads(self._result(step, digest).read_bytes())
        except (OSError, ValueError):
            return None
        matches = isinstance(found, dict) and found.get("digest") == digest
        return dict(found["result"]) if matches and isinstance(found.get("result"), dict) else None

    def replaced(self, run: PipelineRun) -> None:
        """A newer run takes the place of one that has not ended."""
        step = next(each for each in run.steps if not each.state.is_over)
        step.state = StepState.REPLACED
        run.ended_at = round(time.time(), 3)
        run.save()

    def keep(self, step: str, digest: str, result: dict[str, Any]) -> None:
        """Keep what a step found."""
        private_folder(self.place / RESULTS)
        text = json.dumps({"step": step, "digest": digest, "result": result}, indent=2, allow_nan=False)
        write_atomically(self._result(step, digest), text.encode())

    def forget(self, step: str) -> None:
        """Do the step again next time, whatever its inputs are.

        For a step that changes what an earlier time left behind: only its newest result is true.
        """
        for path in (self.place / RESULTS).glob(f"{step}-*.json"):
            path.unlink(missing_ok=True)

    def _result(self, step: str, digest: str) -> Path:
        return self.place / RESULTS / f"{step}-{digest[:_DIGITS]}.json"


def _read(path: Path) -> PipelineRun:
    try:
        values = json.loads(path.read_bytes())
        steps = [StepRecord(**{**one, "state": StepState(one["state"])}) for one in values["steps"]]
        return PipelineRun(
            folder=path.parent,
            number=int(values["number"]),
            causes=[Cause(**one) for one in values["causes"]],
            on=str(values["on"]),
            began_at=float(values["began_at"]),
            steps=steps,
            inputs=dict(values["inputs"]),
            ended_at=float(values["ended_at"]),
        )
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise DataError(
            f"{path} cannot be read as the state of a pipeline ({type(e).__name__}: {e}); move its folder away to "
            "go on without it"
        ) from e
