"""The folder of a run: the one given on the command line, or a new one."""

from __future__ import annotations

import errno
import os
from datetime import datetime
from pathlib import Path

from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.files import private_folder


def run_folder(run: RunConfig, wanted: str = "") -> Path:
    """The folder `wanted` (created if missing), else a new `runs/<name>-<time>`. Its name is the run's id.

    Raises:
        ConfigError: the folder cannot be created or written to.
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
