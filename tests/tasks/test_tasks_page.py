"""docs/tasks.md: its classifiers are complete tasks that run as the page says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from fednc.client.app import flower_app
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from support.prototype_tasks import installed, write_clinic
from support.runs_on_grids import in_one_process

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_classifier_of_the_page_runs_and_is_as_short_as_it_says(tmp_path: Path) -> None:
    code, _ = CODE
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 30
    names: dict[str, Any] = {}
    exec(compile(code, "docs/tasks.md", "exec"), names)
    clients = [
        ClientConfig(name=f"c{i}", data=write_clinic(tmp_path / f"c{i}.csv", i), device="cpu") for i in range(2)
    ]
    values = {
        **tomllib.loads(table),
        "frame": {"dim": 8},
        "train": {"batch": 16, "lr": 0.05},
        "rounds": {"total": 2},
        "evaluate": {"test": write_clinic(tmp_path / "test.csv", 9)},
    }
    with installed({"clinic": names["TASK"]}):
        result = in_one_process(parse_run(values), clients, flower_app.app)
    assert result.history.rounds[-1].test["auroc"] > 0.85


def test_the_task_of_the_page_that_standardises_its_inputs_runs(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    for code in CODE:
        exec(compile(code, "docs/tasks.md", "exec"), names)
    clients = [
        ClientConfig(name=f"c{i}", data=write_clinic(tmp_path / f"c{i}.csv", i), device="cpu", val_share=0.0)
        for i in range(2)
    ]
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    values = tomllib.loads(table)
    values["task"]["name"] = "scaled-clinic"
    values |= {"frame": {"dim": 8}, "train": {"batch": 16, "lr": 0.05}, "rounds": {"total": 2}}
    with installed({"scaled-clinic": names["TASK"]}):
        result = in_one_process(parse_run(values), clients, flower_app.app)
    rows = [np.genfromtxt(tmp_path / f"c{i}.csv", delimiter=",", skip_header=1)[:, :3] for i in range(2)]
    (mean,) = [value for key, value in result.state.model.items() if key.endswith(".mean")]
    assert np.allclose(mean, np.concatenate(rows).mean(axis=0), rtol=1e-6)
