"""The steps that one federated run takes: statistics of the data, initialisation, rounds, sessions.

The first step that is not known yet starts the run or continues it; the carrier says where. What each phase found
is read from the run's folder, which is what makes it resumable. Called through `steps.py`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fednc.common.errors import RunFailedError
from fednc.common.files import private_folder
from fednc.common.model_export import FOLDER, MANIFEST
from fednc.common.tasks import discovery
from fednc.ops.pipelines import base_rounds
from fednc.ops.pipelines.check import clients_of, code, data_of
from fednc.ops.pipelines.digests import digest_of
from fednc.ops.pipelines.journal import BASES, FEDERATED, StepState
from fednc.ops.pipelines.work import PipelineWork, RunOrder
from fednc.ops.run_folders.folder import SUMMARY, is_held
from fednc.server.storage.event_log import read_events
from fednc.server.storage.events import (
    DataSumsAdded,
    Event,
    LastRoundEvaluated,
    ModelInitialised,
    RoundCompleted,
    SessionOpened,
)

PHASES = ("statistics", "init", "train", "sessions")
_OF_STATISTICS = ("task", "split", "seed")  # tables of the run file
_DIGITS = 12

Found = dict[str, Any]


# ---- what each depends on --------------------------------------------------------------------------------------


def statistics_inputs(work: PipelineWork) -> Found:
    """Data, task and code; and where the clients are."""
    decisive = work.run.decisive()
    known = bool(work.file.clients)
    return {
        "tables": {name: decisive.get(name) for name in _OF_STATISTICS},
        "data": data_of(work),
        "clients": clients_of(work.file),
        "on": work.file.on,
        "device": work.file.device,
        # Nobody knows whether the data of clients that come by themselves have changed, so each run asks them
        # anew.
        "number": 0 if known else work.current.number,
        **code(work),
    }


def init_inputs(work: PipelineWork) -> Found:
    """Everything but the rounds."""
    later = ("rounds", "sessions", "evaluate", "personal")
    tables = {name: value for name, value in work.run.decisive().items() if name not in later}
    return {"tables": tables, "statistics": digest_of(statistics_inputs(work))}


def train_inputs(work: PipelineWork) -> Found:
    """Everything but the sessions; of those only how large they make the label space."""
    tables = {name: value for name, value in work.run.decisive().items() if name != "sessions"}
    space = discovery.get(work.run).label_space
    return {"tables": tables, "label_space": space, "statistics": digest_of(statistics_inputs(work))}


def session_inputs(work: PipelineWork) -> Found:
    """Everything."""
    return {"tables": work.run.decisive(), "statistics": digest_of(statistics_inputs(work))}


# ---- when they do not apply ------------------------------------------------------------------------------------


def no_init(work: PipelineWork) -> str:
    """Why the weights are not scaled."""
    from fednc.server.rounds.initialisation import needs_clients

    return "" if needs_clients(work.run) else "the run file asks for no learnt scales ([init])"


def no_sessions(work: PipelineWork) -> str:
    """Why there are no sessions."""
    return "" if work.run.sessions else "the run file has no [[sessions]]"


def is_there(work: PipelineWork, found: Found) -> bool:
    """Whether this very run has ended and its files are still there."""
    return found.get("folder") == _place(work) and _is_finished(work, _place(work))


def can_continue(work: PipelineWork, found: Found) -> bool:
    """As `is_there`; or the sessions differ, and can begin after the rounds of the earlier run."""
    return is_there(work, found) or (bool(work.run.sessions) and base_rounds.are_kept(_base(work)))


# ---- what they do ----------------------------------------------------------------------------------------------


def statistics(work: PipelineWork) -> Found:
    """What the clients hold, and the sums of their data if the task asks for them."""
    place = _run(work)
    summary = json.loads((work.journal.place / place / SUMMARY).read_bytes())
    sums = [event for event in _events(work, place) if isinstance(event, DataSumsAdded)]
    examples = {one["name"]: one["examples"] for one in summary.get("clients") or [] if "examples" in one}
    note = sums[-1].text if sums else f"task {work.run.task.name!r} asks for no sums of the data"
    return {"folder": place, "examples": examples, "note": note}


def init(work: PipelineWork) -> Found:
    """The learnt scales of the first weights."""
    place = _run(work)
    told = [event.text for event in _events(work, place) if isinstance(event, ModelInitialised)]
    return {"folder": place, "note": told[-1] if told else "done"}


def train(work: PipelineWork) -> Found:
    """The rounds before the first session."""
    place = _run(work)
    return {"folder": place, **_rounds(work, place, 0, work.run.rounds.total)}


def sessions(work: PipelineWork) -> Found:
    """The rounds of all sessions."""
    place = _run(work)
    return {"folder": place, **_rounds(work, place, work.run.rounds.total, work.run.all_rounds)}


def _rounds(work: PipelineWork, place: str, after: int, last: int) -> Found:
    """The rounds of one phase, and the training loss of its last one."""
    rounds = json.loads((work.journal.place / place / "rounds.json").read_bytes())
    losses = [one.get("loss") for one in rounds if after < one["round"] <= last]
    told = f", loss {losses[-1]:.4g}" if losses and losses[-1] is not None else ""
    return {"rounds": len(losses), "note": f"{len(losses)} of {last - after} rounds{told}"}


def _events(work: PipelineWork, place: str) -> list[Event]:
    return list(read_events(work.journal.place / place))


def _place(work: PipelineWork) -> str:
    """The folder of the federated run, in the pipeline's."""
    return f"{FEDERATED}/{work.run.name}-{digest_of(session_inputs(work))[:_DIGITS]}"


def _base(work: PipelineWork) -> Path:
    """Where the state after the rounds before the first session is kept, for runs with other sessions."""
    return work.journal.place / BASES / digest_of(train_inputs(work))[:_DIGITS]


def _run(work: PipelineWork) -> str:
    """Run the federated run to its end, unless that has been done. Returns its folder, in the pipeline's."""
    place = _place(work)
    if not _is_finished(work, place):
        watch = PhaseWatch(work)
        order = RunOrder(work.file, work.run, work.file.clients, work.journal.place / place, watch)
        private_folder(order.folder)
        base_rounds.continue_from(_base(work), work.run, order.folder)
        work.carriers.run(order)
        watch.over()
        if not _is_finished(work, place):
            raise RunFailedError(f"{order.folder}: the run ended without a model; its events.jsonl says why")
        _keep_base(work, order.folder)
    return place


def _keep_base(work: PipelineWork, folder: Path) -> None:
    base_rounds.keep(folder, work.run, _base(work))


def _is_finished(work: PipelineWork, place: str) -> bool:
    folder = work.journal.place / place
    try:
        ended = json.loads((folder / SUMMARY).read_bytes()).get("ended", "finished")
    except (OSError, ValueError):
        return False
    return ended == "finished" and (folder / FOLDER / MANIFEST).is_file() and not is_held(folder)


class PhaseWatch:
    """Shows the phase that a run is in, in the pipeline's state and to the person who watches."""

    def __init__(self, work: PipelineWork) -> None:
        self._work, self._phase = work, "statistics"
        self._total = discovery.get(work.run).run.all_rounds

    def __call__(self, event: Event) -> None:
        """Take in one event."""
        if isinstance(event, DataSumsAdded | ModelInitialised | SessionOpened):
            self._work.tell(event.text)
        if isinstance(event, SessionOpened):
            _keep_base(self._work, self._work.journal.place / _place(self._work))
        if isinstance(event, DataSumsAdded):
            self._enter("statistics", event.text)
        elif isinstance(event, ModelInitialised):
            self._enter("init", event.text)
        elif isinstance(event, RoundCompleted | LastRoundEvaluated):
            in_session = event.record.round > self._work.run.rounds.total
            self._enter("sessions" if in_session else "train", f"round {event.record.round} of {self._total}")
            self._work.tell(event.text)

    def over(self) -> None:
        """The run has ended."""
        self._enter("", "")

    def _enter(self, phase: str, note: str) -> None:
        """Mark a phase as running, and those before it as done."""
        records = {step.name: step for step in self._work.current.steps if step.name in PHASES}
        names = list(records)
        for record in list(records.values())[: names.index(phase) if phase else None]:
            if record.state in (StepState.RUNNING, StepState.PENDING):
                record.state = StepState.DONE
                record.seconds = round(time.time() - record.began_at, 3) if record.began_at else 0.0
        if phase:
            now = records[phase]
            if now.state is StepState.PENDING:
                now.began_at = round(time.time(), 3)
            now.state, now.note = StepState.RUNNING, note
        self._work.current.save()
