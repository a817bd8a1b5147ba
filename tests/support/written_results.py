"""A folder of comparison files and one of results, small enough to write by hand; for tests of docs/results.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fednc.bench.compare.plan import Comparison, Row, final_rows, read_comparison, tuning_rows
from fednc.bench.compare.results_page import page
from fednc.bench.compare.run_archive import write_run

# What all small comparison files have; no table of theirs stands before it.
SMALL = """[data]
source = "digits"
[tuning]
rates = [0.01, 0.1]
[run.task]
classes = ["a", "b"]
[run.split]
parts = 2
"""


def result(row: Row, accuracy: float) -> dict[str, Any]:
    machine = {"cpu": "a CPU", "cores": 2, "torch": "2"}
    rounds = [{"round": 1, "accuracy": accuracy / 2}, {"round": 2, "accuracy": accuracy}]
    return {
        "digest": row.digest,
        "kind": row.kind,
        "setting": row.setting,
        "variant": row.variant,
        "seed": row.seed,
        "lr": row.lr,
        "failed": "",
        "summary": {"last5": accuracy, "best": accuracy, "session_acc": [0.25, 0.75]},
        "rounds": rounds,
        "duration_s": 9,
        "shared_by": 3,
        "command": "fednc compare small.toml",
        "commit": "abc",
        "machine": machine,
        "device": "cpu",
        "data_sha256": row.data_sha256,
        "config": {},
    }


class Place:
    """A comparison called `small` and its results: accuracies follow from variant, seed and rate."""

    def __init__(self, folder: Path, text: str, accuracy: dict[str, float]) -> None:
        self.configs, self.results, self._accuracy = folder / "configs", folder / "results", accuracy
        self.configs.mkdir()
        (self.results / "small").mkdir(parents=True)
        (self.configs / "small.toml").write_text(text.lstrip())

    @property
    def plan(self) -> Comparison:
        return read_comparison(self.configs / "small.toml")

    def rows(self) -> list[Row]:
        tuning = tuning_rows(self.plan, "t")
        return [*tuning, *final_rows(self.plan, {(row.setting, row.variant): 0.1 for row in tuning}, "f")]

    def put(self, row: Row, accuracy: float | None = None) -> None:
        value = self._accuracy[row.variant] + row.seed / 100 + row.lr / 10 if accuracy is None else accuracy
        write_run(self.results / "small", result(row, value))

    def page(self) -> str:
        return page(self.configs, self.results)

    def fill(self) -> None:
        """Put all rows."""
        for row in self.rows():
            self.put(row)
