"""The files of one version, and the digest that binds them: written once, checked before each use.

    model/model.safetensors, model/model.json   the model, as `fednc.load` reads it
    run.json                                     the run file
    clients.json                                 what each client said about its data
    version.json                                 what else the version consists of; see `facts_of`
    digests.json                                 sha256 of each file above

The sha256 of digests.json is the digest of the version. It is a tag in the store, and what a person approves.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fednc.common.errors import DataError
from fednc.common.files import PRIVATE_FILE
from fednc.common.model_export import load
from fednc.ops.registry.run_files import RunFiles, model_files, sha256_of

DIGESTS, FACTS, CLIENTS, RUN_FILE = "digests.json", "version.json", "clients.json", "run.json"
TAG = "fednc."  # prefix of our tags
# Facts that are tags too.
_SHOWN = (
    *("run", "run_digest", "method", "task", "readout", "frame_sha256", "weights_sha256"),
    *("data_version", "data_at"),
)


def facts_of(run: RunFiles, name: str, data_version: int) -> dict[str, Any]:
    """The content of version.json: JSON values only."""
    model, summary = run.model, run.summary
    return {
        "format": 1,
        "name": name,
        "run": run.run_id,
        "run_digest": model.run_digest,
        "method": model.run.method.name,
        "task": f"{model.run.task.name}/{model.task_version}",
        "readout": model.run.method.readout,
        "frame_sha256": model.frame_sha256,
        "weights_sha256": model.weights_sha256,
        "classes": list(model.class_names),
        "data_version": data_version,
        "data_at": round(run.data_at, 3),
        "distributions": summary.get("distributions", []),
        "events": run.events,
        "commands": run.commands,
        "summary": {key: value for key, value in summary.items() if key not in ("distributions", "classes")},
    }


def tags_of(facts: Mapping[str, Any], forms: Mapping[str, Any], digest: str) -> dict[str, str]:
    """The tags of a version: its digest, and what people search for."""
    return {
        f"{TAG}digest": digest,
        **{f"{TAG}{key}": str(facts[key]) for key in _SHOWN},
        f"{TAG}forms": json.dumps(forms, sort_keys=True),
    }


def write_bundle(run: RunFiles, name: str, data_version: int, folder: Path) -> tuple[dict[str, Any], str]:
    """Write the files of a version into an empty folder. Returns the content of version.json and the digest.

    Raises:
        DataError: the model cannot be loaded, or changed meanwhile.
    """
    for place, source in model_files(run.folder).items():
        (folder / place).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / place)
    if load(folder).run.digest != run.model.run_digest:
        raise DataError(f"{run.folder}: its model changed while it was registered; register it again")
    facts = facts_of(run, name, data_version)
    said = {client: manifest and json.loads(manifest.to_text()) for client, manifest in run.clients.items()}
    _write(folder / RUN_FILE, json.loads(run.model.run.model_dump_json()))
    _write(folder / CLIENTS, {"clients": said, "forms": run.forms})
    _write(folder / FACTS, facts)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    _write(folder / DIGESTS, {"format": 1, "files": digests})
    return facts, sha256_of(folder / DIGESTS)


def _write(path: Path, value: Any) -> None:
    with open(path, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, PRIVATE_FILE)) as file:
        json.dump(value, file, indent=2, sort_keys=True)


def problems_of(folder: Path, tags: Mapping[str, str]) -> list[str]:
    """What is not as it was registered, one sentence each; empty if everything is.

    Args:
        tags: of the version in the store.
    """
    digest = tags.get(f"{TAG}digest", "")
    try:
        listing = (folder / DIGESTS).read_bytes()
    except OSError as e:
        return [f"{DIGESTS} cannot be read ({e.strerror})"]
    if hashlib.sha256(listing).hexdigest() != digest:
        return [f"{DIGESTS} is not the one that was registered, or the store's tag {TAG}digest was changed"]
    wanted: dict[str, str] = json.loads(listing)["files"]
    found = _file_problems(folder, wanted)
    if any(problem.startswith((FACTS, CLIENTS)) for problem in found):
        return found
    facts, clients = (json.loads((folder / name).read_bytes()) for name in (FACTS, CLIENTS))
    expected = tags_of(facts, clients["forms"], digest)
    return found + [
        f"the store's tag {key} is {tags.get(key, '')!r:.80}, {FACTS} says {value!r:.80}"
        for key, value in expected.items()
        if tags.get(key) != value
    ]


def _file_problems(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    found = []
    for name, sha256 in sorted(wanted.items()):
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif sha256_of(path) != sha256:
            found.append(f"{name} was changed or swapped: its sha256 is not the registered one")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return [*found, *(f"{name} does not belong to this version" for name in sorted(there - {*wanted, DIGESTS}))]


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """One of the JSON files of a verified version."""
    values: dict[str, Any] = json.loads((folder / name).read_bytes())
    return values
