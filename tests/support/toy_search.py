"""A search whose trials cost nothing: clients that answer with values made from the settings. For tests of
searches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fednc.common.config.run import RunConfig
from fednc.ops.search.plan import SearchPlan, read_search_file
from fednc.server.rounds.control import RunControl
from fednc.server.run_series import Judge
from fednc.server.storage.history import History, RoundRecord

RUN = """
name = "toy"
[task]
classes = ["a", "b"]
[rounds]
total = 9
"""
SPACE = """
[space]
train.lr = { low = 1e-4, high = 1.0, log = true }
train.batch = { low = 8, high = 64, step = 8 }
method.name = { choices = ["fednc", "fedprox"] }
"method.proximal" = { low = 0.01, high = 1.0, log = true, when = { method.name = "fedprox" } }
"""


def plan(folder: Path, head: str = "", space: str = SPACE, name: str = "search.toml") -> SearchPlan:
    """A search of 8 trials of 4 rounds, unless `head` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.toml").write_text(RUN)
    defaults = {"run": '"run.toml"', "trials": "8", "name": '"toy"'}
    lines = [f"{key} = {value}" for key, value in defaults.items() if f"{key} =" not in head]
    (folder / name).write_text("\n".join([*lines, "set.rounds.total = 4", head, space]))
    return read_search_file(folder / name)


def accuracy(run: RunConfig, number: int = 4) -> float:
    """Best at lr 0.01 and batch 32; grows with the rounds."""
    distance = (math.log10(run.train.lr) + 2) ** 2 / 4 + (run.train.batch - 32) ** 2 / 4000
    return math.exp(-distance) * number / (number + 1)


class ToyClients:
    """Stands in for a `RunSeries`.

    Attributes:
        runs: every run that was asked for, with the rounds that it did.
        before: called with each run; may raise.
    """

    def __init__(self, before: Callable[[RunConfig], None] = lambda _: None, enough: bool = True) -> None:
        self.control, self.runs, self.before, self.enough = (
            RunControl(),
            list[tuple[RunConfig, int]](),
            before,
            enough,
        )

    @property
    def is_over(self) -> bool:
        return self.control.stop_wanted

    def are_enough(self, run: RunConfig) -> bool:
        return self.enough

    def run(self, run: RunConfig, folder: Path, judge: Judge) -> Any:
        self.before(run)
        history = History()
        for number in range(1, run.rounds.total + 1):
            worst = {"accuracy": 0.5 * accuracy(run, number), "name": "anna"}
            pooled = {"accuracy": accuracy(run, number)}
            record = RoundRecord(round=number, pooled=pooled, worst_client=worst, bytes_up=1000 * run.train.batch)
            history.rounds.append(record)
            if not judge(history):
                break
        self.runs.append((run, len(history.rounds)))
        summary = {"bytes_up": sum(record.bytes_up for record in history.rounds)}
        return SimpleNamespace(folder=folder, summary=summary, result=SimpleNamespace(history=history))
