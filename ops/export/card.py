"""A model card in Markdown: what the model is, how it was trained, how good it is and where that was measured.

Every sentence follows from the files of the run. Clients are numbered unless the caller asks for their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fednc.common.config.run import RunConfig
from fednc.common.errors import DataError
from fednc.common.model_export import ExportedModel, ModelManifest
from fednc.common.peer_text import markdown_code, markdown_text, one_line
from fednc.common.tasks.metric_info import ACCURACY, MetricInfo
from fednc.ops.export.description import Description
from fednc.server.storage.client_metrics import of_round
from fednc.server.storage.history import History, RoundRecord

_MOST_LISTED = 60  # classes or clients in one table


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the run's files say about its training and its quality; empty if they are not there."""

    summary: Mapping[str, Any] = field(default_factory=dict)
    history: History = field(default_factory=History)
    clients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # in the last evaluated round

    @property
    def evaluated(self) -> RoundRecord | None:
        """The last evaluated round."""
        return next((record for record in reversed(self.history.rounds) if record.metrics), None)


def evidence_of(folder: Path, manifest: ModelManifest) -> Evidence:
    """Summary and rounds of the run whose model is in `folder`. Raises DataError: one of them is damaged."""
    for place in (folder, folder / manifest.run.method.name):  # a demo has its runs one folder below the model
        if (place / "rounds.json").is_file():
            try:
                summary = json.loads((place / "summary.json").read_text(encoding="utf-8"))
                rounds = json.loads((place / "rounds.json").read_text(encoding="utf-8"))
                primary = MetricInfo(**summary["metric"]) if "metric" in summary else ACCURACY
                found = Evidence(summary=summary, history=History.from_json(rounds, primary))
                last = found.evaluated
                return replace(found, clients=of_round(place, last.round)) if last else found
            except (OSError, ValueError, TypeError, KeyError) as e:
                raise DataError(
                    f"{place}: summary.json or rounds.json cannot be read ({type(e).__name__}: "
                    f"{one_line(e, 200)}), so there is nothing to write a card from"
                ) from e
    return Evidence()


def card(
    exported: ExportedModel,
    manifest: ModelManifest,
    description: Description,
    evidence: Evidence,
    files: Sequence[str],
    *,
    client_names: bool = False,
) -> str:
    """The whole card."""
    run = manifest.run
    parts = [
        [f"# {markdown_text(run.name)}", "", *_overview(description, run)],
        ["## Training", "", *_training(manifest, evidence)],
        ["## Results", "", *_results(exported, evidence, client_names=client_names)],
        [
            "## Intended use and limits",
            "",
            *(f"* {markdown_text(line)}" for line in _limits(exported, manifest, evidence)),
        ],
        ["## Use it without fednc", "", *_usage(description, exported, files)],
        ["## Origin", "", *_origin(description)],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def snippet(description: Description, reading: Sequence[str]) -> str:
    """A few lines of Python that run the ONNX file with onnxruntime."""
    given = description.input
    imports = [line for line in reading if line.startswith(("from ", "import "))]
    read = [line for line in reading if line not in imports]
    shape = ", ".join(map(str, (1, *given.shape)))
    read = read or [f"{given.name} = np.zeros(({shape}), np.{given.dtype})  # one example; {given.note}"]
    opened = ['session = onnxruntime.InferenceSession("model.onnx")']
    if description.class_names:
        used = [
            'classes = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])',
            *read,
            f'scores, probabilities = session.run(None, {{"{given.name}": {given.name}}})',
            "print(np.array(classes)[probabilities[0].argmax(axis=0)], probabilities[0].max(axis=0))",
        ]
    else:
        used = [*read, f'print(session.run(None, {{"{given.name}": {given.name}}})[0])']
    standard = ["import json"] if description.class_names else []
    return "\n".join([*standard, "import numpy as np", "import onnxruntime", *imports, *opened, *used])


def _overview(description: Description, run: RunConfig) -> Iterator[str]:
    names = description.class_names
    kind = f"a classifier with {len(names)} classes" if names else "a model without classes"
    task = f"{markdown_code(description.task)} (version {description.task_version})"
    yield f"Task {task}: {kind}, trained by federated learning."
    yield ""
    if names:
        yield f"* **Classes**: {markdown_text(_listed(names))}"
    given = description.input
    shape = ", ".join(["batch", *map(str, given.shape)])
    yield f"* **Input**: {markdown_code(given.name)}, {given.dtype} [{shape}]; {given.note}"
    yield f"* **Outputs**: {', '.join(map(markdown_code, description.outputs))}"
    if names:
        yield f"* **Probabilities**: softmax of the scores; the temperature {description.temperature:g} is in them"
    if description.preprocessing:
        yield f"* **Preprocessing**: {markdown_code(json.dumps(description.preprocessing, ensure_ascii=False))}"
    options = {k: v for k, v in run.chosen_task.items() if k not in ("name", "classes")}
    if options:
        yield f"* **Model**: {markdown_code(json.dumps(options, ensure_ascii=False))}"


def _training(manifest: ModelManifest, evidence: Evidence) -> Iterator[str]:
    run, rounds = manifest.run, evidence.history.rounds
    yield f"* **Method**: {markdown_text(run.method.name)}" + (
        f", read out by `{run.method.readout}`" if manifest.class_names else ""
    )
    done = len(rounds)
    yield f"* **Rounds**: {done or 'unknown'}" + (f" of {run.all_rounds}" if done != run.all_rounds else "")
    clients = evidence.summary.get("clients") or []
    if clients:
        total, held = (sum(int(one.get(key) or 0) for one in clients) for key in ("examples", "held_out"))
        yield f"* **Sites**: {len(clients)}, with {total:,} training examples and {held:,} held out"
    elif run.split:
        yield f"* **Sites**: {run.split.parts}"
    if run.split:
        yield f"* **Split**: simulated, {run.split.kind} in {run.split.parts} parts; not data of real sites"
    absent = sum(len(record.missing) for record in rounds)
    if absent:
        yield f"* **Absences**: {absent} times a client did not answer a round"
    if rounds:
        seconds = float(evidence.summary.get("duration_s") or sum(record.seconds for record in rounds))
        up, down = _mib(rounds, "bytes_up"), _mib(rounds, "bytes_down")
        yield f"* **Time and traffic**: {seconds:,.0f} s, {up} MiB up, {down} MiB down"
    section = run.train
    yield (
        f"* **Local training**: epochs per round {section.epochs}, batch {section.batch}, "
        f"learning rate {section.lr:g}"
    )
    yield f"* **Seed**: {run.seed}"


def _results(exported: ExportedModel, evidence: Evidence, *, client_names: bool) -> Iterator[str]:
    record, primary = evidence.evaluated, evidence.history.primary
    if record is None:
        yield "The run's files hold no evaluation."
        return
    yield f"{_measured_on(record)}, after round {record.round}."
    yield ""
    single = {key: value for key, value in record.metrics.items() if "/" not in key}
    yield from _table(
        ["metric", "value"], [[name, _number(value, name, primary)] for name, value in single.items()]
    )
    by_class = _by_class(record.metrics, exported.class_names)
    if by_class:
        metrics = list(dict.fromkeys(metric for found in by_class.values() for metric in found))
        rows = [
            [name, *(_number(found.get(metric), metric, primary) for metric in metrics)]
            for name, found in list(by_class.items())[:_MOST_LISTED]
        ]
        yield from ["", "### By class", ""]
        yield from _table(["class", *metrics], rows)
    yield from _confusion(record.metrics, exported.class_names)
    yield from _by_client(record, evidence.clients, primary, client_names=client_names)


def _by_class(metrics: Mapping[str, float], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Metrics called `metric/class`, by class."""
    found: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        metric, slash, name = key.partition("/")
        if slash and name in names:
            found.setdefault(name, {})[metric] = value
    return {name: found[name] for name in names if name in found}


def _confusion(metrics: Mapping[str, float], names: Sequence[str]) -> Iterator[str]:
    """Counts called `confusion/true/predicted`, if the task measures them."""
    found = {tuple(key.split("/")[1:]): value for key, value in metrics.items() if key.startswith("confusion/")}
    if found and len(names) <= _MOST_LISTED:
        yield from ["", "### Confusion: rows are true classes, columns predicted ones", ""]
        rows = [[one, *(f"{found.get((one, other), 0):g}" for other in names)] for one in names]
        yield from _table(["", *names], rows)


def _by_client(
    record: RoundRecord,
    clients: Mapping[str, Mapping[str, float]],
    primary: MetricInfo,
    *,
    client_names: bool,
) -> Iterator[str]:
    if not clients and not record.worst_client:
        return
    yield from ["", "### By client, on what it holds out", ""]
    if record.spread:
        shown = {name: _number(value, primary.name, primary) for name, value in record.spread.items()}
        figures = ", ".join(f"{name} {shown[name]}" for name in ("min", "median", "max"))
        told = f"{primary.name} of {record.spread['clients']:g} clients: {figures}."
        yield from [markdown_text(told), ""]
    if clients:
        ordered = sorted(clients.items(), key=lambda item: item[1].get(primary.name, 0.0))
        metrics = list(dict.fromkeys(metric for _, found in ordered for metric in found if "/" not in metric))
        rows = [
            [
                name if client_names else f"site {place}",
                *(_number(found.get(m), m, primary) for m in metrics),
            ]
            for place, (name, found) in enumerate(ordered[:_MOST_LISTED], 1)
        ]
        yield from _table(["client", *metrics], rows)
        return
    worst = record.worst_client
    name = str(worst.get("name")) if client_names else "the worst client"
    pooled = record.pooled.get(primary.name)
    together = "" if pooled is None else f"; all clients together: {primary.show(pooled)}"
    yield markdown_text(f"{primary.name} of {name}: {primary.show(worst[primary.name])}{together}.")


def _limits(exported: ExportedModel, manifest: ModelManifest, evidence: Evidence) -> Iterator[str]:
    """What follows from the facts of the run for whoever uses the model, in plain sentences."""
    names, run, record = exported.class_names, manifest.run, evidence.evaluated
    if names:
        yield f"It knows these {len(names)} classes only, and gives every input one of them."
        unseen = [name for name, seen in zip(names, exported.seen_K.tolist(), strict=False) if not seen]
        if unseen and run.method.reads_memory:
            yield f"No site contributed a class memory for: {_listed(unseen)}. Expect it to do badly on them."
        if exported.temperature == 1:
            yield "No temperature was fitted: its probabilities are not calibrated."
        else:
            yield f"Its probabilities were calibrated with a temperature of {exported.temperature:g}."
    yield "Inputs must be prepared as described above; it was not tested on any other preparation."
    if record is None:
        yield "Nothing is known about its quality: measure it before you use it."
        return
    if not record.test:
        yield "It was only measured on examples that the training sites held out, not on data of other sites."
    if run.split:
        yield "The sites are a simulated split of one data set, so the figures say little about sites that differ."
    primary = evidence.history.primary
    by_class = {
        name: found[primary.name]
        for name, found in _by_class(record.metrics, names).items()
        if primary.name in found
    }
    if len(by_class) > 1:
        weakest = (min if primary.higher_is_better else max)(by_class, key=lambda name: by_class[name])
        yield f"It is weakest on class {weakest} ({primary.name} {primary.show(by_class[weakest])})."
    if record.worst_client:
        yield f"At the worst site its {primary.name} is {primary.show(record.worst_client[primary.name])}."
    ended = evidence.summary.get("ended")
    if ended and ended != "finished":
        yield f"The run ended early: {one_line(ended, 200)}."
    best = evidence.history.summary().get("best")
    last = record.value_of(primary)
    if best is not None and last is not None and primary.is_better(best, last):
        shown = primary.show(best)
        yield f"It is the model of the last round; an earlier one had the best {primary.name}, {shown}."
    yield "The run added no noise for differential privacy."


def _usage(description: Description, exported: ExportedModel, files: Sequence[str]) -> Iterator[str]:
    reading = exported.task.graph_input().reading
    made = "" if "model.onnx" in files else " (`fednc export RUN --onnx` writes it)"
    needs = " and Pillow" if any("PIL" in line for line in reading) else ""
    yield f"`model.onnx`{made} holds the model, its read-out and its normalisation. It needs onnxruntime{needs}:"
    yield from ["", "```python", snippet(description, reading), "```"]
    if "model.pt2" in files:
        given = description.input
        yield from ["", "The same graph in PyTorch, for a batch of inputs:", "", "```python", "import torch", ""]
        yield 'model = torch.export.load("model.pt2").module()'
        shape = ", ".join(map(str, (1, *given.shape)))
        yield f"print(model(torch.zeros({shape}, dtype=torch.{given.dtype})))"
        yield "```"
    if "weights.safetensors" in files:
        yield ""
        yield "`weights.safetensors` has all tensors and `weights.json` describes them, for code of your own."


def _origin(description: Description) -> Iterator[str]:
    yield from _table(
        ["", ""],
        [
            ["made by", description.made_by],
            ["run file", f"sha256 {description.config_sha256}"],
            ["frame", f"sha256 {description.frame_sha256}"],
            ["weights", f"sha256 {description.weights_sha256}"],
        ],
    )


def _measured_on(record: RoundRecord) -> str:
    examples = record.metrics.get("examples")
    count = "" if examples is None else f"{int(examples):,} "
    return (
        f"On {count}test examples of the server"
        if record.test
        else f"On {count}examples that the clients hold out"
    )


def _number(value: float | None, name: str, primary: MetricInfo) -> str:
    if value is None:
        return "-"
    if name == primary.name:
        return primary.show(value, 2)
    return f"{value:,.0f}" if name == "examples" else f"{value:.4g}"


def _mib(rounds: Sequence[RoundRecord], key: str) -> str:
    return f"{sum(getattr(record, key) for record in rounds) / 2**20:,.1f}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_LISTED])
    more = len(names) - _MOST_LISTED
    return f"{shown} and {more} more" if more > 0 else shown


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of plain text."""
    yield f"| {' | '.join(map(markdown_text, head))} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(map(markdown_text, row))} |"
