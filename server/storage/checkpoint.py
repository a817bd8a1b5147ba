"""The state of a run on disk: written atomically after every round, read when a server restarts.

A round is two files in `checkpoints/`: the tensors (safetensors), then a manifest with their checksum. The
manifest is written last, so a crash at any moment leaves the earlier rounds intact. Old formats stay readable: a
new format gets a new number and a reader here. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from fednc.common import fault_injection
from fednc.common.config.probe import ProbePick
from fednc.common.errors import ConfigError, DataError
from fednc.common.files import private_folder, write_atomically
from fednc.server.storage import changed_run_file
from fednc.server.storage.changed_run_file import Changes

log = logging.getLogger("fednc.server")
FORMAT = 1


class Manifest(BaseModel):
    """The JSON file of a checkpoint."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int
    round: int
    config_sha256: str
    config: dict[str, Any] | None = None  # the hashed run file; older checkpoints have only the digest
    tensors_sha256: str
    history: list[dict[str, Any]] = []
    parts: dict[str, int] = {}  # the part of the split that each client keeps, by name
    classes: dict[str, Any] | None = None  # the class registry so far, in a run with sessions
    opened: int = 0  # the session opened since the round; 0: none
    picked: ProbePick | None = None  # the candidate of the probe that the run trains
    accepted: dict[int, int] | None = None  # by node, the last round that counts its reply
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state at the end of a round."""

    round: int
    config_sha256: str
    config: dict[str, Any] | None = None
    changed: Changes = field(default_factory=dict)  # keys of the run file that have changed since
    tensors: Mapping[str, Tensor]  # `model.*`, `memory.*`, `extra.*`, `method.*`, `frame.etf_KD`
    history: list[dict[str, Any]] = field(default_factory=list)
    parts: Mapping[str, int] = field(default_factory=dict)
    classes: dict[str, Any] | None = None
    opened: int = 0
    picked: ProbePick | None = None
    accepted: Mapping[int, int] | None = None
    bytes_up: int = 0
    bytes_down: int = 0

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix`, with the prefix removed."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder / "checkpoints", keep
        if keep:
            private_folder(self._folder)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write one round and delete the oldest. Raises OSError; earlier rounds then stay intact."""
        if not self._keep:
            return
        fault_injection.at("server.checkpoint.begin")
        data = safetensors.torch.save({k: v.detach().contiguous().clone() for k, v in checkpoint.tensors.items()})
        manifest = Manifest(
            format=FORMAT,
            round=checkpoint.round,
            config_sha256=checkpoint.config_sha256,
            config=checkpoint.config,
            tensors_sha256=hashlib.sha256(data).hexdigest(),
            history=checkpoint.history,
            parts=dict(checkpoint.parts),
            classes=checkpoint.classes,
            opened=checkpoint.opened,
            picked=checkpoint.picked,
            accepted=None if checkpoint.accepted is None else dict(checkpoint.accepted),
            bytes_up=checkpoint.bytes_up,
            bytes_down=checkpoint.bytes_down,
        )
        stem = self._stem(checkpoint)
        write_atomically(stem.with_suffix(".safetensors"), data)
        fault_injection.at("server.checkpoint.tensors")
        write_atomically(stem.with_suffix(".json"), json.dumps(manifest.model_dump(mode="json")).encode())
        fault_injection.at("server.checkpoint.end")
        for manifest_path in self._manifests()[self._keep :]:
            manifest_path.unlink()
            manifest_path.with_suffix(".safetensors").unlink(missing_ok=True)

    def latest(self, config_sha256: str, config: dict[str, Any] | None = None) -> Checkpoint | None:
        """The newest intact checkpoint, or None if the run has none yet.

        The run file's digest may differ from the checkpoint's if only keys differ that a continued run may change.
        `config` is the run file that `config_sha256` is the digest of.

        Raises:
            ConfigError: the checkpoint belongs to another run file.
            DataError: there are checkpoints, but none is intact.
        """
        found = self.newest()
        if found is None or found.config_sha256 == config_sha256:
            return found
        return self._continued(found, config_sha256, config)

    def newest(self) -> Checkpoint | None:
        """The newest intact checkpoint, whatever its run file. Raises DataError as `latest` does."""
        manifests = self._manifests()
        for path in manifests:
            try:
                return _read(path)
            except (DataError, OSError) as e:
                log.warning("checkpoint %s is not intact (%s); trying the one before", path.name, e)
        if manifests:
            raise DataError(f"none of the {len(manifests)} checkpoints in {self._folder} is intact")
        return None

    def _continued(self, found: Checkpoint, config_sha256: str, config: dict[str, Any] | None) -> Checkpoint:
        folder = self._folder.parent
        if found.config is None or config is None:
            raise ConfigError(
                f"{folder} contains a run with another run file (config {found.config_sha256[:12]}, "
                f"yours {config_sha256[:12]}): give the same file, or another --folder"
            )
        changed = changed_run_file.changes(found.config, config)
        has_sessions = bool(found.config.get("sessions") or config.get("sessions"))
        changed_run_file.check(changed, folder, completed=found.round, has_sessions=has_sessions)
        return replace(found, changed=changed)

    def _stem(self, checkpoint: Checkpoint) -> Path:
        """Path without suffix. An opened session has its own file, which sorts after that of the round before."""
        opened = f"s{checkpoint.opened}" if checkpoint.opened else ""
        return self._folder / f"round-{checkpoint.round:06d}{opened}"

    def _manifests(self) -> list[Path]:
        return sorted(self._folder.glob("round-*.json"), reverse=True)


def _read(path: Path) -> Checkpoint:
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as e:
        raise DataError(f"its manifest is damaged: {e.error_count()} errors") from e
    if manifest.format > FORMAT:
        raise DataError(f"format {manifest.format} is newer than this version of fednc knows ({FORMAT})")
    data = path.with_suffix(".safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest.tensors_sha256:
        raise DataError("checksum differs")
    return Checkpoint(
        round=manifest.round,
        config_sha256=manifest.config_sha256,
        config=manifest.config,
        tensors=safetensors.torch.load(data),
        history=manifest.history,
        parts=manifest.parts,
        classes=manifest.classes,
        opened=manifest.opened,
        picked=manifest.picked,
        accepted=manifest.accepted,
        bytes_up=manifest.bytes_up,
        bytes_down=manifest.bytes_down,
    )
