"""docs/plugins.md and the notebook do what they say: every block of code is run, every command exists."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import fednc
from fednc.bench.compare.engine import compare
from fednc.bench.compare.plan import Comparison
from fednc.bench.compare.rows import Bench
from fednc.cli.main import COMMANDS, _load
from fednc.common import plugins
from fednc.common.config.run import parse_run
from fednc.testing import promises
from support.installed_plugins import Site, site

__all__ = ["site"]

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def blocks(title: str, language: str) -> list[str]:
    """Code of one section."""
    (section,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def execute(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "docs/plugins.md", "exec"), names)


def write_ward(path: Path, seed: int) -> None:
    draw = random.Random(seed)
    lines = ["age,pressure,outcome"]
    for _ in range(80):
        ill = draw.random() < 0.5
        lines.append(
            f"{draw.gauss(45 + 25 * ill, 8):.1f},{draw.gauss(115 + 30 * ill, 10):.1f},{'ill' if ill else 'well'}"
        )
    path.write_text("\n".join(lines) + "\n")


def install(site: Site, source: str, project: str) -> None:
    told = tomllib.loads(project)["project"]
    module = site.install(told["name"], told["entry-points"], source, told["version"])
    (target,) = [value for group in told["entry-points"].values() for value in group.values()]
    assert target.partition(":")[0] == module


@pytest.fixture
def wards(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The task of the page, installed, with data of two wards in the working folder; its run file."""
    source, _ = blocks("Your own task in 30 lines", "python")
    project, run_file = blocks("Your own task in 30 lines", "toml")
    assert len(source.splitlines()) <= 30
    install(site, source, project)
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("ward-a.csv", "ward-b.csv")):
        write_ward(tmp_path / name, seed)
    return tomllib.loads(run_file)


def test_the_task_of_the_page_learns_and_keeps_every_promise(wards: dict[str, Any]) -> None:
    clients = {"a": "csv:ward-a.csv", "b": "csv:ward-b.csv"}
    result = fednc.run(wards, clients, folder="run", device="cpu", progress=False)
    assert result.metrics["auroc"] > 0.8
    assert plugins.find(plugins.TASKS, "wards").distribution == "our-wards"
    _, contract = blocks("Your own task in 30 lines", "python")
    names: dict[str, Any] = {}
    execute(contract, names)
    for _, test in promises(names["TestWards"]):
        test()


def test_its_model_is_read_without_fednc(wards: dict[str, Any], tmp_path: Path) -> None:
    clients = {"a": "csv:ward-a.csv", "b": "csv:ward-b.csv"}
    model = fednc.run(wards, clients, folder="run", device="cpu", progress=False).model
    (code,) = blocks("Load a model without fednc", "python")
    check = "import sys; assert not [name for name in sys.modules if name.startswith('fednc')]"
    batch = torch.tensor([[71.0, 150.0], [35.0, 110.0], [50.0, 128.0]])
    code += f"\n{check}\nprint(json.dumps(scores(torch.tensor({batch.tolist()})).tolist()))\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named, scores = done.stdout.splitlines()
    assert named == "['ill', 'well']"
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(json.loads(scores)), model(batch), rtol=1e-4, atol=1e-3)


def test_the_method_of_the_page_goes_a_part_of_the_way(site: Site) -> None:
    """After one round the model is half way between the drawn one and the one that plain averaging gives."""
    (source, contract), (project,) = blocks("Your own method", "python"), blocks("Your own method", "toml")
    install(site, source, project)
    names: dict[str, Any] = {}
    execute(contract, names)
    for _, test in promises(names["TestPartOfTheWay"]):
        test()
    task = {"classes": [str(digit) for digit in range(10)], "size": 8, "channels": 1, "width": 8}
    run = {"task": task, "frame": {"dim": 16}, "rounds": {"total": 1}}

    def model(**method: Any) -> dict[str, torch.Tensor]:
        clients = {"a": "digits", "b": "digits"}
        done = fednc.run({**run, "method": method}, clients, device="cpu", progress=False)
        return done.model.model.state_dict()

    drawn, half = model(name="part-of-the-way", server_part=0.0), model(name="part-of-the-way")
    whole = model(name="fedavg")
    parameters = [key for key in drawn if key.endswith("weight")]
    for key in parameters:
        torch.testing.assert_close(half[key], (drawn[key] + whole[key]) / 2, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(drawn[key], whole[key]) for key in parameters)


def test_the_comparison_of_the_page_runs(site: Site, wards: dict[str, Any]) -> None:
    """With fewer seeds, rates and rounds than the page has."""
    (source, _), (project,) = blocks("Your own method", "python"), blocks("Your own method", "toml")
    install(site, source, project)
    page = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^## Your own task and method\n.*?```toml\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    values = tomllib.loads(text)
    assert values["run"]["task"] == wards["task"]
    values |= {"seeds": [1], "tuning": {"seed": 1000, "rates": [0.0001, 0.1]}}
    values["run"]["rounds"] = {"total": 2}
    bench = Bench(folder=Path("results"), command="fednc compare", workers=1)
    compared = compare(Comparison.model_validate(values), {"ward": "ward-a.csv"}, bench)
    assert compared.metric.name == "auroc"
    assert {row["variant"] for row in compared.final} == {"fedavg", "part-of-the-way"}
    assert "Test auroc in %" in Path("results/table.md").read_text()
    assert Path("results/two-wards-auroc.png").is_file()


def test_the_tracker_of_the_page_hears_every_round(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,), (project,) = blocks("Your own tracker", "python"), blocks("Your own tracker", "toml")
    install(site, source, project)
    monkeypatch.setenv("BOARD", str(tmp_path / "board.txt"))
    run = {
        "task": {"classes": [str(digit) for digit in range(10)], "size": 8, "channels": 1, "width": 8},
        "frame": {"dim": 16},
        "rounds": {"total": 2},
        "server": {"trackers": ["board"]},
    }
    result = fednc.run(run, {"a": "digits", "b": "digits"}, device="cpu", progress=False)
    lines = (tmp_path / "board.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"]
    assert float(lines[-1].split()[2]) == result.metrics["accuracy"]


def check_notebook_names(names: dict[str, Any]) -> None:
    result = names["result"]
    assert result.rounds == len(result.history.rounds) <= 8
    assert result.metrics["accuracy"] > 0.7
    assert names["scores"].shape == (5, 10)
    assert names["short"].ended in ("good enough", "finished")
    assert (Path("short") / "model" / "model.json").is_file()


def test_the_notebook_section_runs_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in blocks("In a notebook", "python"):
        execute(code, names)
    check_notebook_names(names)


def test_the_notebook_runs_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Jupyter would: code cells in one namespace, in order. No output of a run is committed."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in cells] == [([], None)] * len(cells)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in cells:
        execute("".join(cell["source"]), names)
    check_notebook_names(names)


def test_every_command_on_the_page_exists_with_its_options() -> None:
    lines = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line.removeprefix("$ fednc ")) for line in lines if line.startswith("$ fednc ")]
    assert len(commands) >= 5
    for words in commands:
        assert words[0] in COMMANDS, words
        found = _load(words[0])
        found = getattr(found, "commands", {}).get(words[1] if len(words) > 1 else "", found)
        options = {name for each in found.params for name in each.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


def test_the_run_file_on_the_page_can_be_read_and_the_module_path_cannot() -> None:
    _, run_file = blocks("Your own task in 30 lines", "toml")
    assert parse_run(tomllib.loads(run_file)).task.name == "wards"
    (path,) = re.findall(r"`task\.name = \"(.*?)\"`", PAGE)
    with pytest.raises(fednc_errors().ConfigError, match="never names a module"):
        parse_run({"task": {"name": path}})


def fednc_errors() -> Any:
    from fednc.common import errors

    return errors


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE):
        assert os.path.exists(ROOT / "docs" / target), target
