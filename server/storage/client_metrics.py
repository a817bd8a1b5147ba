"""What each client's held-out examples say about the global model, by the client's name.

The strategy adds a round's metrics; operators see the last ones in the status. With a folder, every evaluated
round is also appended to `clients.jsonl`, one line per client. Only that file grows with clients times rounds:
records of rounds, and so checkpoints, hold five numbers for all clients together (`history.spread_of`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fednc.common.files import write_atomically

FILE = "clients.jsonl"
Metrics = Mapping[str, float]


class ClientMetrics:
    """The metrics of the clients that allow them to be listed.

    Attributes:
        latest: of each client, from the last round in which it was evaluated.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.latest: dict[str, Metrics] = {}
        self._path = folder / FILE if folder else None

    def add(self, server_round: int, by_name: Mapping[str, Metrics]) -> None:
        """Add one evaluated round. Raises OSError."""
        self.latest = {**self.latest, **by_name}
        if self._path and by_name:
            lines = [json.dumps({"round": server_round, "client": n, **m}) for n, m in sorted(by_name.items())]
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))

    def go_back_to(self, server_round: int) -> None:
        """A restarted server continues after this round: drop what was written later, and a torn last line."""
        if self._path is None or not self._path.exists():
            return
        kept = [one for one in map(_parsed, self._path.read_text("utf-8").splitlines()) if one]
        kept = [one for one in kept if one["round"] <= server_round]
        write_atomically(self._path, "".join(f"{json.dumps(one)}\n" for one in kept).encode())
        self.latest = {
            one["client"]: {k: v for k, v in one.items() if k not in ("round", "client")} for one in kept
        }


def of_round(folder: Path, server_round: int) -> dict[str, dict[str, float]]:
    """Metrics of each listed client in one round of a run folder; {} if there are none. Raises OSError."""
    path = folder / FILE
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    found = [one for one in map(_parsed, lines) if one and one["round"] == server_round]
    return {one["client"]: {k: v for k, v in one.items() if k not in ("round", "client")} for one in found}


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"round", "client"} <= found.keys() else None
