"""What a finished run left behind, read for the registry: model, run file, clients, manifests, events.

Reads a run's folder and changes nothing in it. Knows nothing about the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fednc.common.errors import DataError
from fednc.common.model_export import FOLDER, MANIFEST, WEIGHTS, ModelManifest
from fednc.common.tasks.data_manifest import DataManifest
from fednc.server.storage.data_manifests import FILE, read_manifests

SUMMARY, EVENTS = "summary.json", "events.jsonl"
_COMMANDS = 200  # of operators, listed in the lineage
_UNLISTED = frozenset({"clients"})  # of the summary: exact counts of clients stay in the run's folder
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class RunFiles:
    """A finished run.

    Attributes:
        folder: of the run.
        run_id: its name.
        model: content of model.json.
        summary: content of summary.json, without the clients.
        clients: what each client said about its data, by the name that its owner allows; None: nothing.
        data_at: when the last of them was heard (Unix time).
        events: sha256 over all event files, their number and size.
        commands: what operators did in the run.
    """

    folder: Path
    run_id: str
    model: ModelManifest
    summary: dict[str, Any]
    clients: dict[str, DataManifest | None]
    data_at: float
    events: dict[str, Any]
    commands: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """The run in `folder`. Raises DataError: it is not finished, or a file is damaged."""
        try:
            model = ModelManifest.model_validate_json((folder / FOLDER / MANIFEST).read_bytes())
            summary = json.loads((folder / SUMMARY).read_bytes())
            if not isinstance(summary, dict):
                raise ValueError(f"{SUMMARY} is not an object")
            return cls(
                folder=folder,
                run_id=folder.resolve().name,
                model=model,
                summary={key: value for key, value in summary.items() if key not in _UNLISTED},
                clients=_clients(folder, summary),
                data_at=_data_at(folder),
                events=_events(folder),
                commands=_commands(folder),
            )
        except FileNotFoundError as e:
            raise DataError(
                f"{folder}: has no {Path(str(e.filename)).name}; give the folder of a finished run (runs/<id>)"
            ) from e
        except (OSError, ValueError) as e:
            raise DataError(f"{folder}: cannot be read as a finished run ({type(e).__name__}: {e})") from e

    @property
    def forms(self) -> dict[str, Any]:
        """Digests of what a model depends on: the classes, and each client's columns and label map."""
        classes = json.dumps(list(self.model.class_names)).encode()
        return {
            "classes": hashlib.sha256(classes).hexdigest()[:32],
            "clients": {
                name: manifest.form_digest[:32]
                for name, manifest in sorted(self.clients.items())
                if manifest is not None and manifest.has_form
            },
        }


def _clients(folder: Path, summary: dict[str, Any]) -> dict[str, DataManifest | None]:
    """All clients, those without a manifest too, by the names that may be shown."""
    said = read_manifests(folder)
    listed = summary.get("clients") or []
    names = [str(client["name"]) for client in listed if isinstance(client, dict) and "name" in client]
    return {
        (said[name].pseudonym or name) if name in said else name: said.get(name)
        for name in sorted({*names, *said})
    }


def _data_at(folder: Path) -> float:
    path = folder / FILE
    return (path if path.exists() else folder / SUMMARY).stat().st_mtime


def _event_files(folder: Path) -> list[Path]:
    older = sorted(folder.glob(f"{EVENTS}.*"), key=lambda path: -int(path.suffix[1:]))
    return [path for path in [*older, folder / EVENTS] if path.exists()]


def _events(folder: Path) -> dict[str, Any]:
    digest, size, files = hashlib.sha256(), 0, _event_files(folder)
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
    return {"sha256": digest.hexdigest(), "files": len(files), "bytes": size}


def _commands(folder: Path) -> list[dict[str, Any]]:
    found = [line for line in _lines(folder) if line.get("kind") == "control"]
    return [{key: line.get(key) for key in ("at", "operator", "command")} for line in found[:_COMMANDS]]


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in _event_files(folder):
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if '"control"' in line:
                    values = json.loads(line)
                    yield values if isinstance(values, dict) else {}


def sha256_of(path: Path) -> str:
    """Digest of one file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_files(folder: Path) -> dict[str, Path]:
    """The model's files by their path in a version."""
    return {f"{FOLDER}/{name}": folder / FOLDER / name for name in (WEIGHTS, MANIFEST)}
