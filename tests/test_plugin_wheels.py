"""Plug-ins as other people install them: wheels beside the product's, over mTLS, with predict and compare."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    made |= {name: build_wheel(PLUGINS / name, folder) for name in ("slow-server", "survival")}
    later = folder / "source-clinic-table"
    for file in ("pyproject.toml", "clinic_table.py"):
        text = (later / file).read_text()
        (later / file).write_text(text.replace('version = "0.1.0"', 'version = "0.2.0"'))
    made["0.2.0"] = build_in(later, folder)
    return made


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    made = Installed(tmp_path_factory.mktemp("installed") / "venv")
    made.install(wheels["fednc"], wheels["0.1.0"], wheels["slow-server"], wheels["survival"])
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
        "survival": ("survival 0.1.0", "task", "ok"),
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
    other.install(wheels["fednc"], wheels["0.2.0"], wheels["slow-server"])
    run_file = tmp_path / "run.toml"
    run_file.write_text(RUN.format(test=write_table(tmp_path / "test.csv", 9)))
    with Federation(installed, tmp_path / "link", ("anna",)) as federation:
        federation.serve(run_file)
        client = federation.join("anna", "csv:" + write_table(tmp_path / "anna.csv", 1), installed=other)
        assert client.wait(60) == 6, federation.logs()
        said = (federation.folder / "anna.log").read_text()
    assert "the server has clinic-table==0.1.0" in said
    assert "of clinic-table 0.2.0" in said


FOLLOWED = """
name = "survival"
time = "days"
event = "died"
horizon = 3000.0
[{table}.features]
age = [60.0, 10.0]
stage = [2.0, 1.0]
"""
SURVIVAL_RUN = (
    "[task]"
    + FOLLOWED.format(table="task")
    + """
[method]
name = "fedavg"
[train]
batch = 40
lr = 0.3
[rounds]
total = 3
[evaluate]
test = "csv:{test}"
"""
)
SURVIVAL_PLAN = (
    """
name = "survival"
seeds = [1]
[data]
source = "csv:{test}"
[tuning]
rates = [0.3]
[run.task]"""
    + FOLLOWED.format(table="run.task")
    + """
[run.train]
batch = 40
[run.rounds]
total = 2
[run.split]
kind = "iid"
parts = 2
[[settings]]
name = "two-sites"
[[variants]]
name = "fedavg"
method.name = "fedavg"
[[variants]]
name = "slow-server"
method.name = "slow-server"
"""
)


def write_follow_up(path: Path, seed: int, rows: int = 120) -> str:
    """Patients who are followed up: the older and the higher their stage, the sooner most of them die."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["split", "age", "stage", "days", "died"])
        for number in range(rows):
            age, stage = draw.gauss(60, 10), draw.choice([1, 2, 3])
            dies, leaves = draw.expovariate(math.exp((age - 60) / 8 + stage - 2) / 900), draw.expovariate(1 / 1500)
            split = "train" if number % 3 else "test"
            table.writerow([split, f"{age:.2f}", stage, f"{min(dies, leaves):.1f}", int(dies < leaves)])
    return str(path)


def test_survival_without_classes_runs_over_mtls_predicts_and_is_compared(
    installed: Installed, tmp_path: Path
) -> None:
    test = write_follow_up(tmp_path / "test.csv", 9)
    run_file = tmp_path / "run.toml"
    run_file.write_text(SURVIVAL_RUN.format(test=test))
    with Federation(installed, tmp_path / "link", ("anna", "bert")) as federation:
        server = federation.serve(run_file)
        for seed, name in enumerate(("anna", "bert")):
            federation.join(name, "csv:" + write_follow_up(tmp_path / f"{name}.csv", seed))
        assert server.wait(120) == 0, federation.logs()
        run = federation.folder / "run"
    last = json.loads((run / "rounds.json").read_text())[-1]["test"]
    assert last["concordance"] > 0.7
    assert 0 < last["concordance_error"] < 0.05
    told = tmp_path / "told.json"
    installed.fednc(tmp_path, "predict", run, f"csv:{test}", "--json", told)
    assert len(json.loads(told.read_text())["predictions"]) == 40
    (tmp_path / "plan.toml").write_text(SURVIVAL_PLAN.format(test=test))
    installed.fednc(tmp_path, "compare", "plan.toml")


def loaded(name: str) -> Any:
    """The module of a plug-in of ours, as it lies in the folder."""
    (path,) = (PLUGINS / name).glob("*.py")
    spec = importlib.util.spec_from_file_location(f"plugin_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(st.integers(0, 2**32), st.integers(2, 60), st.integers(1, 4))
def test_the_concordance_is_that_of_all_pairs_within_its_error_and_adds_up(
    seed: int, people: int, sites: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    risk_N, time_N = torch.randn(people, generator=draw), torch.rand(people, generator=draw) * 100
    event_N = (torch.rand(people, generator=draw) < 0.6).float()
    metric, target_N2 = loaded("survival").Concordance(100.0), torch.stack([time_N, event_N], dim=1)
    total = metric.zeros(0)
    for site in range(sites):
        mine = torch.arange(people) % sites == site
        sums = metric.sums(risk_N[mine], target_N2[mine])
        metric.check(sums, int(mine.sum()))
        total = {name: total[name] + sums[name] for name in total}
    assert torch.equal(total["seen_ETR"], metric.sums(risk_N, target_N2)["seen_ETR"])
    first_NN = (time_N[:, None] < time_N) & (event_N[:, None] == 1)
    if not first_NN.any():
        return
    right = ((risk_N[:, None] > risk_N) & first_NN).sum() + ((risk_N[:, None] == risk_N) & first_NN).sum() / 2
    exact = float(right / first_NN.sum())
    value, told = metric.value(total, people), metric.details(total, people, ())
    if told:
        assert abs(value - exact) <= told["concordance_error"] + 1e-6


def test_coxs_likelihood_is_that_of_its_definition() -> None:
    draw = torch.Generator().manual_seed(3)
    inputs, time_B = torch.randn(30, 2, generator=draw), torch.rand(30, generator=draw)
    event_B = (torch.rand(30, generator=draw) < 0.5).float()
    task, model = object.__new__(loaded("survival").Survival), torch.nn.Linear(2, 1, bias=False)
    loss, _ = task.loss(model, (inputs, torch.stack([time_B, event_B], dim=1)), None)
    risk_B = model(inputs)[:, 0].double()
    terms = [risk_B[i] - risk_B[time_B >= time_B[i]].logsumexp(0) for i in range(30) if event_B[i]]
    torch.testing.assert_close(loss.double(), -torch.stack(terms).mean(), rtol=1e-5, atol=1e-6)
