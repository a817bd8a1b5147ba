"""Writes the result files of a finished run, on any grid.

Called by the server process and, on stock Flower, by the app itself. Must not know the link.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fednc.common.distributions import distributions_of
from fednc.common.files import private_folder, write_atomically
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.model_export import export
from fednc.common.peer_text import markdown_text
from fednc.common.tasks.round_guide import guide_of_model
from fednc.server.rounds.run import RunResult

EXAMPLES = "examples"  # a folder in the run's folder

log = logging.getLogger("fednc.server")


def summary_of(run_id: str, result: RunResult, **measured: Any) -> dict[str, Any]:
    """The content of `summary.json`; `measured` are values that only the caller knows."""
    return {
        "run": run_id,
        "method": result.run.method.name,
        "seed": result.run.seed,
        "config_sha256": result.run.digest,
        "frame_sha256": result.frame.digest,
        "classes": list(result.class_names),
        "model_bytes": {"once": result.traffic.once, "each_round": result.traffic.each_round},
        "distributions": distributions_of(result.run),
        **measured,
        **result.history.summary(),
        **_afterwards(result),
    }


def _afterwards(result: RunResult) -> dict[str, Any]:
    """What only some runs have, by its key."""
    after, rounds = result.after, result.run.rounds
    found = {
        "kept_round": result.state.completed if rounds.keep == "best" else None,
        "best_round": result.history.best_round if rounds.keep == "best" or rounds.stop_after else None,
        "client_metrics": dict(result.client_metrics),
        "calibration": after.calibration,
        "personal": after.personal,
        "probe": dict(result.probe),
    }
    return {key: value for key, value in found.items() if value}


def write_files(folder: Path, result: RunResult, summary: dict[str, Any]) -> None:
    """The model, the summary and all rounds."""
    model = result.task.new_model()
    model.load_state_dict(result.state.model, strict=False)
    run, memories = result.run, result.state.memories
    memory = memories.under(run.method.memory_source, result.frame.etf_KD, run.seed)
    export(folder, model, result.task, result.frame, memory, run, result.class_names, result.after.temperature)
    _write_examples(folder, result, memory)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
    write_atomically(folder / "rounds.json", json.dumps(result.history.to_json(), indent=2).encode())
    if result.client_metrics:
        write_atomically(folder / "clients.md", client_table(result).encode())


def client_table(result: RunResult) -> str:
    """Markdown: a row for each listed client, a column for each metric; empty where a client cannot measure it."""
    infos = [metric.info for metric in result.task.measured_by]
    last = next((record for record in reversed(result.history.rounds) if record.test or record.pooled), None)
    rows: dict[str, Mapping[str, float]] = dict(sorted(result.client_metrics.items()))
    if last:
        rows |= {name: found for name, found in (("held out, all", last.pooled), ("test", last.test)) if found}
    names = " | ".join(markdown_text(info.name) for info in infos)
    lines = [f"| client | examples | {names} |", f"|{'---|' * (len(infos) + 2)}"]
    for name, found in rows.items():
        values = [info.show(found[info.name]) if info.name in found else "" for info in infos]
        lines.append(f"| {markdown_text(name)} | {found.get('examples', 0):,.0f} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def write_round_examples(folder: Path, number: int, files: Mapping[str, bytes]) -> None:
    """Write the example files of one round to `examples/`, each with the round in its name."""
    for name, content in files.items():
        private_folder(folder / EXAMPLES)
        write_atomically(folder / EXAMPLES / f"round-{number:06d}-{Path(name).name}", content)


def _write_examples(folder: Path, result: RunResult, memory: ClassMemory) -> None:
    """Write the task's example files to `examples/`. An error in it must not lose the other files."""
    if result.evaluation is None:
        return
    try:
        guide = guide_of_model(
            result.task, result.frame.etf_KD, memory, len(result.class_names), result.after.temperature
        )
        for name, content in result.evaluation.examples(result.state.model, guide).items():
            private_folder(folder / EXAMPLES)
            write_atomically(folder / EXAMPLES / Path(name).name, content)
    except Exception:
        log.exception("no examples of task %s could be written", result.task.name)
