"""Plug-ins as other people install them: wheels beside the product's, over mTLS, with predict and compare."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from support.plugin_wheels import PLUGINS, ROOT, Federation, Installed, build_in, build_wheel

pytestmark = pytest.mark.timeout(300)

OPTIONS = """
name = "clinic-table"
classes = ["well", "ill"]
[{table}.features]
age = [60.0, 12.0]
pressure = [120.0, 20.0]
glucose = [5.5, 1.5]
"""
RUN = (
    "[task]"
    + OPTIONS.format(table="task")
    + """
[frame]
dim = 8
[method]
name = "slow-server"
server_part = 0.9
[train]
batch = 16
lr = 0.1
epochs = 4
[rounds]
total = 3
[evaluate]
test = "csv:{test}"
[server]
trackers = ["csv"]
"""
)
PLAN = (
    """
name = "clinics"
seeds = [1]
[data]
source = "csv:{test}"
[tuning]
rates = [0.05]
[run.task]"""
    + OPTIONS.format(table="run.task")
    + """
[run.frame]
dim = 8
[run.train]
batch = 16
[run.rounds]
total = 2
[run.split]
kind = "iid"
parts = 2
[[settings]]
name = "two-clinics"
[[variants]]
name = "fedavg"
method.name = "fedavg"
[[variants]]
name = "slow-server"
method.name = "slow-server"
"""
)


def write_table(path: Path, seed: int, rows: int = 120) -> str:
    """Patients of a made-up clinic: the older, the higher their pressure and glucose, the more are ill."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "age", "pressure", "glucose", "outcome"])
        for number in range(rows):
            ill = draw.random() < 0.4
            figures = [
                draw.gauss(mean + shift * ill, width)
                for mean, width, shift in ((58, 12, 12), (118, 20, 20), (5.2, 1.2, 1.6))
            ]
            split = "train" if number % 4 else "test"
            table.writerow([split, *(f"{value:.3f}" for value in figures), "ill" if ill else "well"])
    return str(path)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The product, the plug-in, and the plug-in in a later release whose task has another version."""
    folder = tmp_path_factory.mktemp("wheels")
    made = {"fednc": build_wheel(ROOT, folder), "0.1.0": build_wheel(PLUGINS / "clinic-table", folder)}
    made["method"] = build_wheel(PLUGINS / "slow-server", folder)
    later = folder / "source-clinic-table"
    for file in ("pyproject.toml", "clinic_table.py"):
        text = (later / file).read_text()
        (later / file).write_text(text.replace('version = "0.1.0"', 'version = "0.2.0"'))
    made["0.2.0"] = build_in(later, folder)
    return made


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    made = Installed(tmp_path_factory.mktemp("installed") / "venv")
    made.install(wheels["fednc"], wheels["0.1.0"], wheels["method"])
    return made


def test_no_plug_in_of_ours_is_named_in_the_product() -> None:
    names = {path.name for path in PLUGINS.iterdir() if (path / "pyproject.toml").is_file()}
    assert "clinic-table" in names
    words = names | {name.replace("-", "_") for name in names}
    for floor in ("api", "bench", "cli", "client", "common", "ops", "server", "tasks"):
        for path in (ROOT / floor).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert not [word for word in words if word in text], path


def test_the_task_is_forty_lines() -> None:
    assert len((PLUGINS / "clinic-table" / "clinic_table.py").read_text().splitlines()) <= 40


def test_it_runs_over_mtls_and_predicts(installed: Installed, tmp_path: Path) -> None:
    test = write_table(tmp_path / "test.csv", 9)
    run_file = tmp_path / "run.toml"
    run_file.write_text(RUN.format(test=test))
    listed = json.loads(installed.fednc(tmp_path, "plugins", "--json", "-").partition("\nplug-ins")[0])["plugins"]
    found = {
        row["name"]: (row["distribution"], row["kind"], row["state"]) for row in listed if row["from"] == "plug-in"
    }
    assert found == {
        "clinic-table": ("clinic-table 0.1.0", "task", "ok"),
        "slow-server": ("slow-server 0.1.0", "method", "ok"),
    }
    with Federation(installed, tmp_path / "link", ("anna", "bert")) as federation:
        server = federation.serve(run_file)
        clients = [
            federation.join(
                name, "csv:" + write_table(tmp_path / f"{name}.csv", seed), "--allow-task", "clinic-table"
            )
            for seed, name in enumerate(("anna", "bert"))
        ]
        assert server.wait(120) == 0, federation.logs()
        assert [client.wait(60) for client in clients] == [0, 0], federation.logs()
        run = federation.folder / "run"
    rounds = json.loads((run / "rounds.json").read_text())
    assert len(rounds) == 3
    assert rounds[-1]["test"]["auroc"] > 0.8
    assert rounds[-1]["test"]["auroc_error"] < 0.01
    assert 0.5 < rounds[-1]["test"]["balanced_accuracy"] <= 1
    assert "auroc" in (run / "metrics.csv").read_text()
    told = tmp_path / "told.json"
    installed.fednc(tmp_path, "predict", run, f"csv:{test}", "--json", told)
    assert {row["class"] for row in json.loads(told.read_text())["predictions"]} == {"well", "ill"}


def test_it_is_compared_and_keeps_every_promise(installed: Installed, tmp_path: Path) -> None:
    test = write_table(tmp_path / "all.csv", 9)
    (tmp_path / "plan.toml").write_text(PLAN.format(test=test))
    installed.fednc(tmp_path, "compare", "plan.toml")
    (tmp_path / "run.toml").write_text(RUN.format(test=test))
    told = installed.fednc(
        tmp_path, "plugins", "check", "clinic-table", "--data", f"csv:{test}", "--run", tmp_path / "run.toml"
    )
    assert "FAILED" not in told


def test_another_release_of_it_is_refused_at_attendance(
    installed: Installed, wheels: dict[str, Path], tmp_path: Path
) -> None:
    other = Installed(tmp_path / "other")
    other.install(wheels["fednc"], wheels["0.2.0"], wheels["method"])
    run_file = tmp_path / "run.toml"
    run_file.write_text(RUN.format(test=write_table(tmp_path / "test.csv", 9)))
    with Federation(installed, tmp_path / "link", ("anna",)) as federation:
        federation.serve(run_file)
        client = federation.join("anna", "csv:" + write_table(tmp_path / "anna.csv", 1), installed=other)
        assert client.wait(60) == 6, federation.logs()
        said = (federation.folder / "anna.log").read_text()
    assert "the server has clinic-table==0.1.0" in said
    assert "of clinic-table 0.2.0" in said
