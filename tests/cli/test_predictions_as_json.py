"""`fednc predict --json` with values that JSON cannot hold."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fednc.cli.predict import command
from fednc.common.config.run import parse_run
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.model_export import export
from fednc.common.tasks import discovery
from support.prototype_tasks import LINE, installed, write_line


def test_an_infinite_prediction_is_written_as_null(tmp_path: Path) -> None:
    run = parse_run(LINE)
    data = write_line(tmp_path / "some.npz", 1, rows=3)
    with installed():
        task = discovery.get(run)
        model = task.build_model()
        with torch.no_grad():
            next(iter(model.parameters())).fill_(torch.inf)
        frame = task.frame(0)
        export(tmp_path / "run", model, task, frame, ClassMemory.empty(frame.vertices, task.memory_dim), run)
        command(tmp_path / "run", data, "cpu", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["value"] for row in found["predictions"]] == [[None]] * 3
    assert found["metrics"] == {"examples": 3}
