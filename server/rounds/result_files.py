"""The files that a finished run leaves in its folder, whichever grid carried it.

Called by the server process and, on stock Flower, by the app itself. Must not know the link.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fednc.common.files import write_atomically
from fednc.common.model_export import export
from fednc.server.rounds.run import RunResult


def summary_of(run_id: str, result: RunResult, **measured: Any) -> dict[str, Any]:
    """What `summary.json` holds; `measured` is what only the carrier of the run knows."""
    return {
        "run": run_id,
        "method": result.run.method.name,
        "seed": result.run.seed,
        "config_sha256": result.run.digest,
        "frame_sha256": result.frame.digest,
        "classes": list(result.class_names),
        **measured,
        **result.history.summary(),
    }


def write_files(folder: Path, result: RunResult, summary: dict[str, Any]) -> None:
    """The model, the summary and all rounds."""
    model = result.task.build_model()
    model.load_state_dict(result.state.model, strict=False)
    run, memories = result.run, result.state.memories
    memory = memories.under(run.method.memory_source, result.frame.etf_KD, run.seed)
    export(folder, model, result.task, result.frame, memory, run, result.class_names)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
    write_atomically(folder / "rounds.json", json.dumps(result.history.to_json(), indent=2).encode())
