"""The client's log of what left this machine and what it refused: one JSON object per line.

Written by `guard.py` before a reply goes to the link, so that nothing leaves unlogged. Holds sizes and digests,
never the content of a reply.
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, RecordDict

from fednc.common.errors import ConfigError
from fednc.common.wire import records

MOST_REFUSALS = 1000  # refusals logged in a run; a server that keeps asking must not fill the disk


class Audit:
    """An append-only file that only its owner can read."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises ConfigError."""
        self._path = path
        self._refusals = 0
        try:
            self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            os.fchmod(self._file, 0o600)
        except OSError as e:
            raise ConfigError(
                f"the audit log {path} cannot be written ({e.strerror}): name a file in an existing folder"
            ) from e

    def begin_run(self, **facts: Any) -> None:
        """This client takes part in a run."""
        self._refusals = 0
        self.write("declared", **facts)

    def refuse(self, **facts: Any) -> None:
        """Log a refusal and its number in this run; beyond `MOST_REFUSALS` they are only counted."""
        self._refusals += 1
        if self._refusals <= MOST_REFUSALS:
            self.write("refused", refusals=self._refusals, **facts)

    def write(self, outcome: str, **facts: Any) -> None:
        """Write one line. Raises OSError."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "outcome": outcome, **facts}
        data = (json.dumps(line) + "\n").encode()
        if os.write(self._file, data) != len(data):
            raise OSError(f"{self._path}: a line was written only in part")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def describe(content: RecordDict) -> dict[str, Any]:
    """What the log says about a reply: bytes of each record, bytes in all, and sha256 of header and data."""
    manifest = records.to_manifest(content, with_digests=False)
    sizes = {entry.name: entry.ByteSize() for entry in manifest.records}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            sizes[name] += sum(len(array.data) for array in record.values())
    found = hashlib.sha256(manifest.SerializeToString(deterministic=True))
    for array in records.arrays_of(content):
        found.update(array.data)
    return {"records": sizes, "bytes": sum(sizes.values()), "sha256": found.hexdigest()}
