"""`probe.json` in a run's folder: what the probe said, so that a server that starts again does not ask again.

Written before round 1, read at every start. From round 1 on the checkpoints have the pick too. Bound to the run
file by its digest. Trains nothing.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fednc.common.config.probe import ProbePick
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.files import write_atomically

FILE = "probe.json"

log = logging.getLogger("fednc.server")


class ProbeFile(BaseModel):
    """The content of the file; `verdict` is a `ProbeVerdict` of `common/tasks/probe.py` as plain values."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    config_sha256: str
    picked: ProbePick
    verdict: dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """The pick that a run starts with.

    Attributes:
        pick: None: the probe has not been made, or said nothing.
        verdict: what the probe said; {} if it was not asked.
        by_operator: whether the pick stands in the run file.
    """

    pick: ProbePick | None = None
    verdict: dict[str, Any] | None = None
    by_operator: bool = False


def write(folder: Path, run: RunConfig, verdict: dict[str, Any]) -> None:
    """Record what the probe said. Raises OSError."""
    found = ProbeFile(config_sha256=run.digest, picked=verdict["picked"], verdict=verdict)
    write_atomically(folder / FILE, json.dumps(found.model_dump(mode="json"), indent=2).encode())


def decision(folder: Path, run: RunConfig, begun_with: ProbePick | None, *, has_begun: bool) -> Decision:
    """The pick with which the run in `folder` starts or goes on.

    Args:
        run: the run file as given.
        begun_with: the pick of the checkpoint from which it continues.
        has_begun: whether there is such a checkpoint.

    Raises:
        ConfigError: the run file has another pick than the one with which the run has begun.
    """
    given = run.probe.picked if run.probe else None
    recorded = _read(folder, run)
    if has_begun and given not in (None, begun_with):
        raise ConfigError(
            f"probe.picked: the run in {folder} has begun with {_said(begun_with)}, and cannot go on with "
            f"{_said(given)}: leave it out, or give another --folder"
        )
    pick = begun_with if has_begun else given or (recorded.picked if recorded else None)
    verdict = recorded.verdict if recorded and recorded.picked == pick else None
    return Decision(pick, verdict, by_operator=given is not None)


def _read(folder: Path, run: RunConfig) -> ProbeFile | None:
    """What was recorded under this run file."""
    try:
        found = ProbeFile.model_validate_json((folder / FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as e:
        log.warning("%s cannot be read (%s): the probe is made again", folder / FILE, type(e).__name__)
        return None
    return found if found.config_sha256 == run.digest else None


def _said(pick: ProbePick | None) -> str:
    return f"{pick.family} {pick.value:g}" if pick else "[task] as it is"
