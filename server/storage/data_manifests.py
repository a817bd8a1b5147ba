"""The data manifests of a run's clients, in the run's folder: a line of JSON for each one that is new.

Written by the federation when a node declares itself, read by the registry of models. A manifest that cannot be
used costs its node nothing: a newer client may say more than this version understands.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from fednc.common.errors import ProtocolError
from fednc.common.files import private
from fednc.common.tasks.data_manifest import DataManifest

FILE = "data_manifests.jsonl"
MOST_CHANGES = 8  # of one node's manifest in a run; later ones are not kept


@dataclass
class ManifestFile:
    """Keeps what each node said about its data; the last manifest of a node counts.

    Attributes:
        folder: the run's folder; None: nothing is kept.
    """

    folder: Path | None = None
    _last: dict[str, str] = field(default_factory=dict)
    _changes: Counter[str] = field(default_factory=Counter)

    def keep_in(self, folder: Path) -> None:
        """Continue the file of a run that was restarted, and write every new manifest to `folder`."""
        self.folder = folder
        for node, manifest in _lines(folder):
            self._remember(node, manifest.to_text())

    def note(self, node: str, text: str) -> str:
        """Keep the manifest that a node sent, unless it said the same before.

        Returns what is wrong with it; empty if nothing.

        Raises:
            OSError: it cannot be written.
        """
        if not text or self.folder is None:
            return ""
        try:
            manifest = DataManifest.parse(text)
        except ProtocolError as e:
            return str(e)
        known = manifest.to_text()
        if self._last.get(node) == known:
            return ""
        if self._changes[node] >= MOST_CHANGES:
            return f"it has changed {MOST_CHANGES} times; later ones are not kept"
        values = json.loads(known)
        line = json.dumps({"node": node, "at": round(time.time(), 3), "manifest": values}) + "\n"
        with os.fdopen(private(str(self.folder / FILE), os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a") as file:
            file.write(line)
        self._remember(node, known)
        return ""

    def _remember(self, node: str, text: str) -> None:
        self._last[node] = text
        self._changes[node] += 1


def read_manifests(folder: Path) -> dict[str, DataManifest]:
    """The last manifest of each node of the run in `folder`, by name."""
    return dict(_lines(folder))


def _lines(folder: Path) -> Iterator[tuple[str, DataManifest]]:
    """All lines in order; those that a killed server left unfinished are skipped."""
    path = folder / FILE
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            values = json.loads(line)
            yield str(values["node"]), DataManifest.model_validate_json(json.dumps(values["manifest"]))
        except (ValueError, KeyError, TypeError, ValidationError):
            continue
