"""The files that a finished run leaves in its folder, whichever grid carried it.

Called by the server process and, on stock Flower, by the app itself. Must not know the link.
"""

from __future__ import annotations

import errno
import json
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.files import private_folder, write_atomically
from fednc.common.model_export import export

if TYPE_CHECKING:
    from fednc.server.rounds.run import RunResult


def run_folder(run: RunConfig, wanted: str = "") -> Path:
    """The folder `wanted`, there or not, else a new `runs/<name>-<time>`; its name is the run's id.

    Raises:
        ConfigError: no folder can be made there, or nothing written into it.
    """
    try:
        return _writable(_make_folder(run, wanted))
    except OSError as e:
        key = f"--folder {wanted}" if wanted else f"server.runs = {run.server.runs!r}"
        raise ConfigError(
            f"{key}: the run's folder cannot be written ({e.strerror}: {e.filename}, user {os.geteuid()}); give a "
            "--folder that this user may write to"
        ) from e


def _writable(folder: Path) -> Path:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return folder


def _make_folder(run: RunConfig, wanted: str) -> Path:
    if wanted:
        private_folder(Path(wanted))
        return Path(wanted).resolve()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ["", *(f"-{n}" for n in range(2, 1000))]:
        folder = Path(run.server.runs) / f"{run.name}-{stamp}{suffix}"
        try:
            private_folder(folder, exist_ok=False)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(folder)


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
