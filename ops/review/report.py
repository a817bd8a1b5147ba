"""A report of a run in plain language: what, who, how good, where bad, what next. From the files in its folder.

Called by `fednc report`. Every sentence follows from a file of the run; what to do next follows from the rules
below, and each piece of advice names its rule. Clients that ask not to be listed appear as numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fednc.common.errors import DataError
from fednc.common.tasks.metric_info import PERCENT, MetricInfo
from fednc.ops.review.page import Block, Bullets, Page, Picture, TextTable
from fednc.ops.run_folders.folder import SUMMARY, RunFolder, State, read_json, read_run
from fednc.server.storage.client_metrics import of_round
from fednc.server.storage.event_log import read_events
from fednc.server.storage.events import (
    ClientDrifts,
    DriftOver,
    Event,
    MessageRejected,
    NodeQuarantined,
    NodeReady,
    RobustMeanSkipped,
    RunStarted,
)
from fednc.server.storage.history import RoundRecord

_MOST_ROWS, _MOST_PICTURES, _MOST_BYTES = 60, 12, 4 << 20
_PNG = b"\x89PNG\r\n\x1a\n"

# The rules of `what next`. Shares: of 1, so 0.10 of a metric in percent is 10 points.
WORSE_POINTS = 0.10  # a class or client is weak if a metric in percent is this much worse than usual
WORSE_SHARE = 0.25  # the same for a metric without percent, as a share of the usual value
FEW_SHARE = 0.2  # a class is rare if it has less than this share of an even share of the examples
ABSENT_SHARE = 0.2  # a client is absent often if it missed more than this share of the rounds
GAIN = 0.005  # still improving: the last evaluation is the best, by this share more than the one before
UNSURE_ERROR = 0.05  # confidences are off by more than this


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the files say."""

    run: RunFolder
    summary: Mapping[str, Any]
    clients: Mapping[str, Mapping[str, float]]  # listed ones, in the last evaluated round
    events: Sequence[Event] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """The facts of the run in `folder`. Raises DataError: it is no run, or cannot be read."""
        run = read_run(folder)
        if run.state in (State.FOREIGN, State.DAMAGED) or not (run.config or run.history.rounds):
            raise DataError(f"{folder}: not a run that can be read ({run.problem or 'no rounds'}); give runs/<id>")
        evaluated = _evaluated(run)
        clients = of_round(folder, evaluated.round) if evaluated else {}
        try:
            return cls(
                run=run, summary=read_json(folder / SUMMARY, {}), clients=clients, events=list(read_events(folder))
            )
        except ValueError as e:
            raise DataError(f"{folder}: {e}") from e

    @property
    def metric(self) -> MetricInfo:
        """The metric that the run is judged by."""
        return self.run.history.primary

    @property
    def evaluated(self) -> RoundRecord | None:
        """The last evaluated round."""
        return _evaluated(self.run)

    @cached_property
    def by_class(self) -> dict[str, float]:
        """The metric of each class, if the task has it."""
        prefix = f"{self.metric.name}/"
        found = self.evaluated.metrics if self.evaluated else {}
        return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}

    @cached_property
    def examples(self) -> dict[str, int]:
        """Training examples of each class over all clients, as they announced them; {} if that is not known."""
        names, ready = self.summary.get("classes") or [], self.ready
        counts = [one.class_counts for one in ready.values() if len(one.class_counts) >= len(names)]
        return {name: sum(one[k] for one in counts) for k, name in enumerate(names)} if names and counts else {}

    @cached_property
    def ready(self) -> dict[str, NodeReady]:
        """What each client said when it was last ready, by name."""
        return {event.node: event for event in self.events if isinstance(event, NodeReady)}

    @cached_property
    def drifting(self) -> dict[str, ClientDrifts]:
        """The drift alarm in force of each client, by name; "" is one that is not listed."""
        found: dict[str, ClientDrifts] = {}
        for event in self.events:
            if isinstance(event, RunStarted):
                found.clear()  # a server that starts again tells the alarms in force again
            elif isinstance(event, ClientDrifts):
                found[event.node] = event
            elif isinstance(event, DriftOver):
                found.pop(event.node, None)
        return found

    @cached_property
    def absences(self) -> dict[str, int]:
        """Rounds that each client missed or failed in, by name."""
        found: dict[str, int] = {}
        for record in self.run.history.rounds:
            for name in {*record.missing, *record.failures}:
                found[name] = found.get(name, 0) + 1
        return found

    def shown(self, name: str) -> str:
        """A client's name, if it may be listed."""
        return name if name in self.clients else "a client that is not listed"

    def is_weak(self, value: float, usual: float) -> bool:
        """Whether `value` is much worse than the usual one; see `WORSE_POINTS` and `WORSE_SHARE`."""
        gap = abs(value - usual)
        limit = WORSE_POINTS if self.metric.unit == PERCENT else WORSE_SHARE * abs(usual)
        return self.metric.is_better(usual, value) and gap > limit


def report(folder: Path) -> Page:
    """The report of the run in `folder`. Raises DataError: it is no run, or cannot be read."""
    facts = Facts.read(folder)
    page = Page(f"Report of {folder.resolve().name}")
    page.section("In short", [_short(facts)])
    page.section("What", list(_what(facts)))
    page.section("Who", list(_who(facts)))
    page.section("How good", list(_how_good(facts)))
    page.section("Where it is bad", list(_where_bad(facts)))
    page.section("What next", _what_next(facts))
    page.section("Pictures", list(_pictures(folder)))
    return page


def _evaluated(run: RunFolder) -> RoundRecord | None:
    return next((record for record in reversed(run.history.rounds) if record.metrics), None)


def _short(facts: Facts) -> str:
    last, run = facts.evaluated, facts.run
    value = last.value_of(facts.metric) if last else None
    if value is None:
        return f"The run is {run.state}. It has not been evaluated, so nothing is known about its quality."
    advice = len(_advice(facts))
    found = f"{advice} thing{'s' * (advice > 1)} to do" if advice else "nothing that needs attention"
    return (
        f"After {run.done} rounds the model reaches {facts.metric.name} {facts.metric.show(value)} "
        f"{_where_measured(last)}. The run is {run.state}; there is {found}."
    )


def _where_measured(record: RoundRecord | None) -> str:
    return (
        "on the server's own test data" if record and record.test else "on what the clients hold out of training"
    )


def _what(facts: Facts) -> Iterator[Block]:
    run, config = facts.run, facts.run.config
    rows = [["method", run.method or "unknown"], ["task", str(config.get("task", {}).get("name", "unknown"))]]
    classes = facts.summary.get("classes") or []
    if classes:
        rows.append(
            ["classes", f"{len(classes)}: {', '.join(map(str, classes[:20]))}{', ...' * (len(classes) > 20)}"]
        )
    planned = f" of {run.planned}" if run.planned and run.planned != run.done else ""
    rows += [["rounds", f"{run.done}{planned}"], ["state", f"{run.state}{f': {run.problem}' * bool(run.problem)}"]]
    rows.append(["time", f"{run.seconds:,.0f} s"])
    if run.bytes_up or run.bytes_down:
        rows.append(["traffic", f"{run.bytes_up / 2**20:,.1f} MiB up, {run.bytes_down / 2**20:,.1f} MiB down"])
    for one in facts.summary.get("distributions") or []:
        licence = f", licence {one['licence']}" if one.get("licence") else ""
        provides = f" ({', '.join(one['provides'])})" if one.get("provides") else ""
        rows.append(["code", f"{one['name']} {one['version']}{provides}{licence}, {str(one['code_sha256'])[:12]}"])
    yield TextTable(["fact", "value"], rows)


def _who(facts: Facts) -> Iterator[Block]:
    last = facts.run.history.rounds[-1] if facts.run.history.rounds else None
    if last is None:
        return
    told = f"{last.replies} clients answered in the last round, with {last.examples:,} training examples together."
    hidden = len(set(facts.ready) - set(facts.clients))
    if facts.clients and hidden:
        told += f" {hidden} of them {'are' if hidden > 1 else 'is'} not listed by name."
    yield told
    rounds = max(1, facts.run.done)
    rows = []
    for name, metrics in sorted(facts.clients.items())[:_MOST_ROWS]:
        ready = facts.ready.get(name)
        rows.append(
            [
                name,
                f"{ready.examples:,}" if ready else "-",
                f"{metrics.get('examples', 0):,.0f}",
                facts.metric.show(metrics[facts.metric.name]) if facts.metric.name in metrics else "-",
                f"{facts.absences.get(name, 0)} of {rounds}",
                "drift alarm" if name in facts.drifting else "",
            ]
        )
    if rows:
        head = ["client", "trains on", "holds out", f"{facts.metric.name} on that", "rounds missed", "note"]
        yield TextTable(head, rows)


def _how_good(facts: Facts) -> Iterator[Block]:
    last = facts.evaluated
    if last is None:
        yield "Nothing was evaluated."
        return
    yield f"Measured {_where_measured(last)}, after round {last.round}."
    single = {key: value for key, value in last.metrics.items() if "/" not in key and math.isfinite(value)}
    yield TextTable(
        ["metric", "value"], [[key, _number(facts.metric, key, value)] for key, value in single.items()]
    )
    if last.spread:
        three = (f"{name} {facts.metric.show(last.spread[name])}" for name in ("min", "median", "max"))
        clients = f"{last.spread['clients']:.0f} clients"
        yield f"{facts.metric.name} over {clients}, each on what it holds out: {', '.join(three)}."
    curve = facts.run.history.curve
    if len(curve) > 1:
        best = facts.metric.best([value for _, value in curve])
        when = next(number for number, value in curve if value == best)
        first, end = facts.metric.show(curve[0][1]), facts.metric.show(curve[-1][1])
        yield (
            f"{facts.metric.name} went from {first} after round {curve[0][0]} to {end} after round "
            f"{curve[-1][0]}; the best was {facts.metric.show(best or 0)} after round {when}."
        )


def _number(metric: MetricInfo, name: str, value: float) -> str:
    if name == metric.name:
        return metric.show(value, 2)
    return f"{value:,.0f}" if name == "examples" else f"{value:.4g}"


def _where_bad(facts: Facts) -> Iterator[Block]:
    if facts.by_class:
        ordered = sorted(
            facts.by_class.items(), key=lambda item: item[1], reverse=not facts.metric.higher_is_better
        )
        usual = _median(facts.by_class.values())
        yield f"Classes, the worst first. The median class has {facts.metric.name} {facts.metric.show(usual)}."
        rows = [
            [
                name,
                facts.metric.show(value),
                f"{facts.examples[name]:,}" if name in facts.examples else "-",
                "weak" if facts.is_weak(value, usual) else "",
            ]
            for name, value in ordered[:_MOST_ROWS]
        ]
        yield TextTable(["class", facts.metric.name, "training examples", "note"], rows)
    found = _client_values(facts)
    if found:
        usual = _median(found.values())
        rows = [
            [name, facts.metric.show(value), "weak" if facts.is_weak(value, usual) else ""]
            for name, value in sorted(found.items(), key=lambda i: i[1], reverse=not facts.metric.higher_is_better)
        ]
        yield f"Clients, the worst first, each on what it holds out. The median is {facts.metric.show(usual)}."
        yield TextTable(["client", facts.metric.name, "note"], rows[:_MOST_ROWS])
    alarms = [
        f"{facts.shown(name)}: {event.times:.1f} times as far from the others as usual since round {event.round}, "
        f"farthest in {', '.join(event.classes[:3]) or 'an unnamed class'}"
        for name, event in facts.drifting.items()
    ]
    if alarms:
        yield "Drift alarms that are in force:"
        yield Bullets(alarms)


def _client_values(facts: Facts) -> dict[str, float]:
    name = facts.metric.name
    return {
        client: found[name] for client, found in facts.clients.items() if math.isfinite(found.get(name, math.nan))
    }


def _median(values: Collection[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)


# ---- what next --------------------------------------------------------------------------------------------------


def _what_next(facts: Facts) -> list[Block]:
    advice = _advice(facts)
    if not advice:
        return [
            f"None of the {len(RULES)} rules of this report asks for anything. If the model is good enough "
            "for its purpose, register it: fednc models register RUN."
        ]
    return [TextTable(["do this", "because", "rule"], [[*each] for each in advice])]


def _advice(facts: Facts) -> list[tuple[str, str, str]]:
    """(what to do, why here, the rule) for each rule that applies, the most urgent first."""
    return [(do, why, rule) for rule, find in RULES.items() for do, why in find(facts)]


Finding = Iterator[tuple[str, str]]  # (what to do, why here)


def _unfinished(facts: Facts) -> Finding:
    if facts.run.state is State.RESUMABLE:
        yield "Start the server again with the same run file and --folder.", "the run was interrupted"
    elif facts.run.state is State.FAILED:
        yield "Find out why the run failed before you use its model.", facts.run.problem or "it failed"


def _exploded(facts: Facts) -> Finding:
    if facts.run.history.has_exploded:
        yield "Lower train.lr, or set train.clip_norm.", "the training loss rose far above its best value"


def _attacked(facts: Facts) -> Finding:
    for name in sorted({e.node for e in facts.events if isinstance(e, NodeQuarantined)}):
        yield "Ask the owner before you readmit it.", f"{facts.shown(name)} was shut out because of what it sent"
    rejected = sum(isinstance(e, MessageRejected) for e in facts.events)
    if rejected:
        yield (
            "Look for the kind `rejected` in events.jsonl.",
            f"{rejected} messages were ones that no honest node sends",
        )


def _drifts(facts: Facts) -> Finding:
    for name, event in facts.drifting.items():
        classes = f", most in {', '.join(event.classes[:3])}" if event.classes else ""
        yield (
            "Ask whether its data, sensor or labelling has changed.",
            f"{facts.shown(name)}: drift alarm since round {event.round}{classes}",
        )


def _unmeasured(facts: Facts) -> Finding:
    if facts.evaluated is None:
        yield (
            "Evaluate: set evaluate.test, or let clients hold examples out.",
            "nothing is known about the quality",
        )
    elif not facts.evaluated.test:
        yield "Give the server test data of its own (evaluate.test).", "quality was measured by the clients only"


def _weak_classes(facts: Facts) -> Finding:
    usual = _median(facts.by_class.values()) if len(facts.by_class) > 1 else math.nan
    for name, value in sorted(facts.by_class.items()):
        if facts.is_weak(value, usual):
            why = f"class {name}: {facts.metric.show(value)}, the median class has {facts.metric.show(usual)}"
            yield "Look at its examples (fednc queue RUN) and check their labels.", why


def _rare_classes(facts: Facts) -> Finding:
    total = sum(facts.examples.values())
    for name, count in facts.examples.items():
        if total and count < FEW_SHARE * total / len(facts.examples):
            yield (
                "Collect more examples of it, or set class weights.",
                f"class {name}: {count:,} of {total:,} examples",
            )


def _weak_clients(facts: Facts) -> Finding:
    found = _client_values(facts)
    usual = _median(found.values()) if len(found) > 2 else math.nan
    for name, value in sorted(found.items()):
        if facts.is_weak(value, usual):
            why = f"{name}: {facts.metric.show(value)}, the median client has {facts.metric.show(usual)}"
            yield "Compare its data with the others'; try a personal model ([personal]).", why


def _absent(facts: Facts) -> Finding:
    for name, count in sorted(facts.absences.items()):
        if count > ABSENT_SHARE * max(1, facts.run.done):
            yield (
                "Check its machine and its connection.",
                f"{facts.shown(name)} missed {count} of {facts.run.done} rounds",
            )


def _improving(facts: Facts) -> Finding:
    values = [value for _, value in facts.run.history.curve]
    if len(values) > 2 and facts.metric.best(values) == values[-1] != values[-2]:
        gain = abs(values[-1] - values[-2]) / max(1e-9, abs(values[-2]))
        if gain > GAIN and facts.metric.is_better(values[-1], values[-2]):
            yield (
                "Train for more rounds (rounds.total).",
                f"{facts.metric.name} still improves: the last evaluation is the best",
            )


def _past_best(facts: Facts) -> Finding:
    best, last = facts.run.best, facts.run.last
    kept = facts.run.config.get("rounds", {}).get("keep") == "best"
    if best is not None and last is not None and not kept and facts.is_weak(last, best):
        why = f"the best round had {facts.metric.show(best)}, the last one has {facts.metric.show(last)}"
        yield 'Set rounds.keep = "best".', why


def _unsure(facts: Facts) -> Finding:
    test = (facts.summary.get("calibration") or {}).get("test") or {}
    error = (list(test.values())[-1] if test else {}).get("calibration_error")
    if isinstance(error, float) and error > UNSURE_ERROR:
        yield "Do not use the confidences as probabilities.", f"they are off by {error:.1%} on the test data"


def _not_robust(facts: Facts) -> Finding:
    if any(isinstance(event, RobustMeanSkipped) for event in facts.events):
        yield "Wait for three clients or more.", "rounds.robust had too few updates to work with"


RULES: dict[str, Callable[[Facts], Finding]] = {
    "the run did not end well": _unfinished,
    "the training loss is far above its best value": _exploded,
    "a client was shut out, or messages were rejected": _attacked,
    "a drift alarm is in force": _drifts,
    "there is no evaluation on data of the server": _unmeasured,
    "a class is 10 points (or a quarter) worse than the median class": _weak_classes,
    "a class has less than a fifth of an even share of the examples": _rare_classes,
    "a client is 10 points (or a quarter) worse than the median client": _weak_clients,
    "a client missed more than a fifth of the rounds": _absent,
    "the last evaluation is the best by more than 0.5 %": _improving,
    "the last evaluation is 10 points (or a quarter) worse than the best": _past_best,
    "confidences are off by more than 5 %": _unsure,
    "the robust mean was skipped": _not_robust,
}


def _pictures(folder: Path) -> Iterator[Picture]:
    """Those of the run and of its task, and the head of its queue."""
    named = {
        "clients.png": "clients by round",
        "reliability.png": "accuracy by confidence, on the server's test data",
    }
    finals = [path for path in sorted((folder / "examples").glob("*.png")) if not path.name.startswith("round-")]
    places = [
        *((folder / name, caption) for name, caption in named.items()),
        *((path, f"examples: {path.stem}") for path in finals),
        *((path, f"least sure: {path.stem}") for path in sorted((folder / "queue").glob("*.png"))[:6]),
    ]
    for path, caption in [each for each in places if _is_picture(each[0])][:_MOST_PICTURES]:
        yield Picture(path, caption)


def _is_picture(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(_PNG)) == _PNG
