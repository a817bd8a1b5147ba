"""Lists of names that are shut out, with the reason for each; kept over restarts. Knows no nodes and no calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from fednc.common.files import write_atomically


class ShutOut:
    """Names with the reason for each, in a file once there is one."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._path: Path | None = None

    def keep_in(self, path: Path) -> None:
        """Know again what `path` says, and write every later change there."""
        self._path = path
        if path.exists():
            kept = json.loads(path.read_bytes())
            self._reasons |= kept if isinstance(kept, dict) else dict.fromkeys(kept, "")  # names alone, as it was

    def add(self, name: str, reason: str) -> None:
        """Raises OSError: it cannot be kept; it holds until a restart."""
        self._reasons[name] = reason
        self._write()

    def lift(self, name: str) -> None:
        """Raises OSError: it is lifted, but only until a restart."""
        self._reasons.pop(name)
        self._write()

    def reason(self, name: str) -> str | None:
        """Why the name is shut out; None where it is not."""
        return self._reasons.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._reasons))

    def _write(self) -> None:
        if self._path:
            write_atomically(self._path, json.dumps(self._reasons, indent=1, sort_keys=True).encode())
