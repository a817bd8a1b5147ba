"""The probe before round 1: asks every client to try the candidates, and lets the run go on with the best one.

Called by the run before its rounds. Works over any grid. What the sums mean is in `common/tasks/probe.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fednc.common.config.probe import ProbePick
from fednc.common.tasks import probe
from fednc.common.tasks.metrics import Stats
from fednc.common.tasks.probe import ProbeVerdict
from fednc.common.wire import messages
from fednc.common.wire.messages import DATA, PROBE, Instruction
from fednc.server.aggregation.total_sums import TotalSums
from fednc.server.rounds.reply_contents import probe_in
from fednc.server.rounds.strategy import FrameStrategy
from fednc.server.rounds.sums_exchange import Answers, Question, ask_until_quorum
from fednc.server.storage.events import DiskProblem, ProbeDecided, ProbeMissing, ProbeStarted, ProbeWaiting


def ask_for_pick(
    strategy: FrameStrategy, grid: Grid, data_sums: Stats, keep: Callable[[Mapping[str, Any]], None]
) -> ProbeVerdict | None:
    """What the clients' trials say; None if nobody sends any, and then the run goes on with `[task]` as it is.

    Args:
        data_sums: totals of the sums of the data, for tasks that use them; {} for others.
        keep: records the verdict, before anybody is told of it.
    """
    run, section = strategy.run, probe.section_of(strategy.run)
    count = len(probe.candidates(run))
    text = (
        f"the probe: every client tries {count} candidates, {section.steps} steps each from "
        f"{section.seeds} starting points"
    )
    strategy.events.emit(ProbeStarted(text=text, candidates=count, steps=section.steps, seeds=section.seeds))
    answers = _ask(strategy, grid, data_sums)
    verdict = None if answers.diverged else probe.judged(answers.total.value(), run)
    counts = {"answered": len(answers.added), "withheld": len(answers.withheld)}
    if verdict is None:
        text = (
            f"no client could say anything about the candidates ({strategy.replies.reasons}): the run goes "
            "on with [task] as it is. Too few training examples, or not allowed by the owners (allow.probe)"
        )
        strategy.events.emit(ProbeMissing(text=text, **counts))
        return None
    try:
        keep(verdict.to_json())
    except OSError as e:
        text = (
            f"what the probe said cannot be kept: {e.strerror}; before the first checkpoint, a restart asks again"
        )
        strategy.events.emit(DiskProblem(text=text, errno=e.errno))
    text = f"{verdict.text}; tried by {len(answers.added)} clients on {verdict.held_out} held-out examples"
    strategy.events.emit(
        ProbeDecided(
            text=text,
            family=verdict.pick.family,
            value=verdict.pick.value,
            config=run.digest,
            verdict=verdict.to_json(),
            **counts,
        )
    )
    return verdict


def probe_waits(pick: ProbePick) -> ProbeWaiting:
    """The event of a run that an operator is to confirm."""
    text = (
        f"the run waits for an operator: `fednc status --resume` goes on with {pick.family}, {pick.value:g}. For "
        "another candidate, stop the server, set probe.picked in the run file, and start it again with the same "
        "--folder"
    )
    return ProbeWaiting(text=text, family=pick.family, value=pick.value)


def _ask(strategy: FrameStrategy, grid: Grid, data_sums: Stats) -> Answers:
    """The answers of all clients. A client that fails is asked again only while too few have answered."""
    answers = Answers(TotalSums(probe.no_losses(strategy.run)))
    question = Question(
        kind=PROBE,
        server_round=0,
        content=_content(strategy, data_sums),
        read=lambda content, announced: probe_in(content, strategy.task, announced),
        point="server.probe",
    )
    ask_until_quorum(strategy, grid, question, answers)  # fewer say something too
    return answers


def _content(strategy: FrameStrategy, data_sums: Stats) -> RecordDict:
    content = messages.instruction_content(Instruction.under(strategy.run, 1))
    if data_sums:
        content[DATA] = messages.data_record(data_sums)
    return content
