"""Lists of banned names with the reason for each, kept across restarts. Knows no nodes and no calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fednc.common.files import write_atomically


class BanList:
    """Banned names with the reason for each. Kept in a file after `keep_in` was called."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._path: Path | None = None

    def keep_in(self, path: Path) -> None:
        """Load the names in `path`, and write every later change there."""
        self._path = path
        if path.exists():
            kept = json.loads(path.read_bytes())
            self._reasons |= kept if isinstance(kept, dict) else dict.fromkeys(kept, "")  # older files: only names

    def add(self, name: str, reason: str) -> None:
        """Ban a name. Raises OSError if it cannot be written: the ban then lasts until a restart."""
        self._reasons[name] = reason
        self._write()

    def lift(self, name: str) -> None:
        """Lift a ban. Raises OSError if that cannot be written: it is then lifted until a restart."""
        self._reasons.pop(name)
        self._write()

    def reason(self, name: str) -> str | None:
        """Why the name is banned; None if it is not."""
        return self._reasons.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._reasons))

    def _write(self) -> None:
        if self._path:
            write_atomically(self._path, json.dumps(self._reasons, indent=1, sort_keys=True).encode())
