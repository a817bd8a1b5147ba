"""The run files in `examples/` run as they are, except for fewer rounds and made-up images of the right form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig, read_run_file
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))


def made_up(run: RunConfig, path: Path) -> None:
    """Images that fit the run's task: a few of every class, with labels in another order than the run's."""
    task = run.task.model_dump()
    names = list(reversed(task["classes"]))
    shape = (task["size"], task["size"], *([3] if task["channels"] == 3 else []))
    draw = np.random.default_rng(0)
    arrays = {"classes": np.array(names)}
    for part, each in (("train", 8), ("test", 2)):
        arrays[f"y_{part}"] = np.tile(np.arange(len(names)), each)
        arrays[f"x_{part}"] = draw.integers(0, 256, (len(names) * each, *shape), np.uint8)
    np.savez(path, **arrays)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = read_run_file(path)
    data = run.evaluate.test
    if data.startswith("npz:"):
        made_up(run, Path(data.removeprefix("npz:")))
    run = run.model_copy(update={"rounds": run.rounds.model_copy(update={"total": 1})})
    quick = {"start": "at-once", "rounds": 1, "epochs": 1}
    run = run.model_copy(update={"sessions": tuple(one.model_copy(update=quick) for one in run.sessions)})
    if run.probe:
        run = run.model_copy(update={"probe": run.probe.model_copy(update={"steps": 1, "seeds": 1})})
    clients = [ClientConfig(name=f"edge-{i}", data=data, device="cpu") for i in range(run.split.parts)]
    prepared = FederatedRun(run, EventLog())
    with LocalGrid(run, clients) as grid:
        result = prepared.execute(grid)
    record = result.history.rounds[-1]
    assert len(result.history.rounds) == 1 + len(run.sessions)
    assert record.replies == len(clients)
    assert 0 <= record.test["accuracy"] <= 1
    assert 0 <= record.pooled["accuracy"] <= 1
