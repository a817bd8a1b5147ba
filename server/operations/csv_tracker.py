"""The tracker `csv`: every metric of every round as a line of `metrics.csv` in the run's folder.

One line per value (round, metric, value), so the columns stay the same when the metrics change.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from fednc.common.errors import ConfigError
from fednc.common.files import private
from fednc.common.trackers import Round, Start, Tracker
from fednc.server.operations.told_rounds import ToldRounds

FILE = "metrics.csv"
COLUMNS = ("round", "metric", "value")


class CsvTracker(Tracker):
    """Appends to `metrics.csv`, also after a restart."""

    def __init__(self) -> None:
        self._path = Path(FILE)  # set by `on_start`
        self._told = ToldRounds("csv")

    def on_start(self, start: Start) -> None:
        """Create the file. Raises ConfigError if the run has no folder."""
        if start.folder is None:
            raise ConfigError("the csv tracker writes into the run's folder, and this run has none")
        self._path = start.folder / FILE
        self._told.open(start.folder)
        if not self._path.exists():
            self._append([COLUMNS])
            self._told.note(run=start.run_id)

    def on_round(self, record: Round) -> None:
        """One line per value; none if the round is a repetition after a restart."""
        if not self._told.is_new(record.round):
            return
        training = {"loss in training": record.loss, "seconds": record.seconds, "replies": record.replies}
        traffic = {"bytes up": record.bytes_up, "bytes down": record.bytes_down}
        clients = {f"clients/{name}": value for name, value in record.spread.items()}
        self._append(_lines(record.round, {**training, **traffic, **record.metrics, **clients}))
        self._told.note(number=record.round)

    def _append(self, rows: list[tuple[object, ...]]) -> None:
        with open(self._path, "a", newline="", encoding="utf-8", opener=_private) as file:
            csv.writer(file).writerows(rows)


def _lines(number: int, values: Mapping[str, float | None]) -> list[tuple[object, ...]]:
    return [(number, name, value) for name, value in values.items() if value is not None]


def _private(path: str, flags: int) -> int:
    return private(path, flags | os.O_CREAT)
