"""docs/tasks.md: its tasks are complete and run as the page says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fednc
from fednc.client.app import flower_app
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError
from support.prototype_tasks import installed, write_clinic
from support.runs_on_grids import in_one_process

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def section(title: str) -> tuple[str, str]:
    """The code and the run file of one section."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    (code,), (table,) = (
        re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for language in ("python", "toml")
    )
    return code, table


def test_the_classifier_of_the_page_runs_and_is_as_short_as_it_says(tmp_path: Path) -> None:
    code, table = section("Your own classifier in 30 lines")
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
    for code in CODE[:2]:  # it derives from the first section's task
        exec(compile(code, "docs/tasks.md", "exec"), names)
    clients = [
        ClientConfig(name=f"c{i}", data=write_clinic(tmp_path / f"c{i}.csv", i), device="cpu", val_share=0.0)
        for i in range(2)
    ]
    _, table = section("Your own classifier in 30 lines")
    values = tomllib.loads(table)
    values["task"]["name"] = "scaled-clinic"
    values |= {"frame": {"dim": 8}, "train": {"batch": 16, "lr": 0.05}, "rounds": {"total": 2}}
    with installed({"scaled-clinic": names["TASK"]}):
        result = in_one_process(parse_run(values), clients, flower_app.app)
    rows = [np.genfromtxt(tmp_path / f"c{i}.csv", delimiter=",", skip_header=1)[:, :3] for i in range(2)]
    (mean,) = [value for key, value in result.state.model.items() if key.endswith(".mean")]
    assert np.allclose(mean, np.concatenate(rows).mean(axis=0), rtol=1e-6)


def write_service(path: Path, seed: int) -> str:
    draw = np.random.default_rng(seed)
    arrays = {}
    for part, rows in (("train", 120), ("test", 60)):
        sensors = draw.normal(size=(rows, 4)).astype(np.float32)
        arrays |= {f"sensors_{part}": sensors, f"km_{part}": sensors @ np.array([3, -2, 1, 0], np.float32)}
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_the_regression_of_the_page_runs_and_refuses_methods_of_classes(tmp_path: Path) -> None:
    code, table = section("A task without classes")
    names: dict[str, Any] = {}
    exec(compile(code, "docs/tasks.md", "exec"), names)
    values = {
        **tomllib.loads(table),
        "rounds": {"total": 6},
        "evaluate": {"test": write_service(tmp_path / "test.npz", 9)},
    }
    values["train"] |= {"batch": 16, "epochs": 3}
    specs = {f"c{i}": write_service(tmp_path / f"c{i}.npz", i) for i in range(2)}
    with installed({"service": names["TASK"]}):
        result = fednc.run(values, specs, progress=False, device="cpu")
        for refused in ("fednc", "fedetf", "fedlc", "fedntd", "moon"):
            with pytest.raises(ConfigError, match=f"'{refused}' needs classes"):
                fednc.run({**values, "method": {"name": refused}}, specs, progress=False)
    errors = [record.test["mae"] for record in result.history.rounds]
    assert errors[-1] < 0.5 * errors[0]
