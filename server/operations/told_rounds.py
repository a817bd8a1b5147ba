"""What a tracker has been told already: a small file in the run's folder, `trackers/NAME.json`.

A server that is started again continues from its last checkpoint. It may repeat rounds, and its trackers must
neither begin a new run nor get a point twice.
"""

from __future__ import annotations

import json
from pathlib import Path

from fednc.common.errors import ConfigError
from fednc.common.files import private_folder, write_atomically

_FOLDER = "trackers"


class ToldRounds:
    """The last round that a tracker was told, and the name of the run in its own store."""

    def __init__(self, name: str) -> None:
        """`name`: the tracker's."""
        self._name, self._path = name, Path()
        self.round, self.run = 0, ""

    def open(self, folder: Path | None) -> None:
        """Read the tracker's file in the run's folder. Raises ConfigError: the run has no folder."""
        if folder is None:
            raise ConfigError(f"the {self._name} tracker writes into the run's folder, and this run has none")
        self._path = folder / _FOLDER / f"{self._name}.json"
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            self.round, self.run = int(found["round"]), str(found["run"])
        except FileNotFoundError:
            private_folder(self._path.parent)
        except (OSError, ValueError, TypeError, KeyError):  # damaged: begin again rather than fail
            self.round, self.run = 0, ""

    def is_new(self, number: int) -> bool:
        """Whether the tracker has not been told this round."""
        return number > self.round

    def note(self, *, number: int | None = None, run: str | None = None) -> None:
        """Keep a round, or the name of the run."""
        self.round = self.round if number is None else max(self.round, number)
        self.run = self.run if run is None else run
        write_atomically(self._path, json.dumps({"round": self.round, "run": self.run}).encode())
