"""Plug-ins as other people install them: wheels beside the product's, over mTLS, with predict and compare."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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


def test_the_product_names_no_example_plug_in() -> None:
    names = {path.name for path in PLUGINS.iterdir() if (path / "pyproject.toml").is_file()}
    assert "clinic-table" in names
    words = names | {name.replace("-", "_") for name in names}
    for floor in ("api", "bench", "cli", "client", "common", "ops", "server", "tasks"):
        for path in (ROOT / floor).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert not [word for word in words if word in text], path


def test_the_task_is_forty_lines() -> None:
    assert len((PLUGINS / "clinic-table" / "clinic_table.py").read_text().splitlines()) <= 40


@dataclass(frozen=True)
class Runs:
    """The results of the runs over mTLS: their folders, and what a client of another release said."""

    clinic: Path
    survival: Path
    tables: Path
    refused: int
    refusal: str


@pytest.fixture(scope="module")
def runs(installed: Installed, wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Server and two clients per task, at the same time; a client with another release of a task comes first."""
    folder = tmp_path_factory.mktemp("runs")
    other = Installed(folder / "other")
    other.install(wheels["fednc"], wheels["0.2.0"], wheels["slow-server"])
    texts = {"clinic": (RUN, write_table), "survival": (SURVIVAL_RUN, write_follow_up)}
    with ExitStack() as stack:
        federations, servers, clients, specs = {}, {}, [], {}
        for name, (text, write) in texts.items():
            (folder / f"{name}.toml").write_text(text.format(test=write(folder / f"{name}-test.csv", 9)))
            specs[name] = ["csv:" + write(folder / f"{name}-{seed}.csv", seed) for seed in range(2)]
            made = Federation(installed, folder / name, ("anna", "bert", "carl"))
            federations[name] = stack.enter_context(made)
            servers[name] = made.serve(folder / f"{name}.toml")
        stranger = federations["clinic"].join("carl", specs["clinic"][0], installed=other)
        for name, data in zip(("anna", "bert"), specs["survival"], strict=True):
            clients.append(federations["survival"].join(name, data))
        refused = stranger.wait(60)
        refusal = (federations["clinic"].folder / "carl.log").read_text()
        for name, data in zip(("anna", "bert"), specs["clinic"], strict=True):
            clients.append(federations["clinic"].join(name, data, "--allow-task", "clinic-table"))
        for name, server in servers.items():
            assert server.wait(120) == 0, federations[name].logs()
        assert [client.wait(60) for client in clients] == [0] * 4, [one.logs() for one in federations.values()]
    return Runs(folder / "clinic" / "run", folder / "survival" / "run", folder, refused, refusal)


@pytest.fixture(scope="module")
def told(runs: Runs, installed: Installed) -> dict[str, str]:
    """What every other command says, by name."""
    tables = runs.tables
    (tables / "clinics.toml").write_text(PLAN.format(test=tables / "clinic-test.csv"))
    (tables / "follow-up.toml").write_text(SURVIVAL_PLAN.format(test=tables / "survival-test.csv"))
    data = f"csv:{tables / 'clinic-test.csv'}"
    commands: dict[str, Sequence[object]] = {
        "check": ("plugins", "check", "clinic-table", "--data", data, "--run", tables / "clinic.toml"),
        "compare": ("compare", "clinics.toml", "--workers", 1),
        "compare survival": ("compare", "follow-up.toml", "--workers", 1),
        "plugins": ("plugins", "--json", "-"),
        "predict": ("predict", runs.clinic, data, "--json", "one.json"),
        "predict survival": (
            "predict",
            runs.survival,
            f"csv:{tables / 'survival-test.csv'}",
            "--json",
            "two.json",
        ),
    }
    return dict(zip(commands, installed.fednc(tables, *commands.values()), strict=True))


def test_all_of_them_are_listed(told: dict[str, str]) -> None:
    listed = json.loads(told["plugins"].partition("\nplug-ins")[0])["plugins"]
    found = {
        row["name"]: (row["distribution"], row["kind"], row["state"]) for row in listed if row["from"] == "plug-in"
    }
    assert found == {
        "clinic-table": ("clinic-table 0.1.0", "task", "ok"),
        "slow-server": ("slow-server 0.1.0", "method", "ok"),
        "survival": ("survival 0.1.0", "task", "ok"),
    }


def test_it_runs_over_mtls_and_predicts(runs: Runs, told: dict[str, str]) -> None:
    rounds = json.loads((runs.clinic / "rounds.json").read_text())
    assert len(rounds) == 3
    assert rounds[-1]["test"]["auroc"] > 0.8
    assert rounds[-1]["test"]["auroc_error"] < 0.01
    assert 0.5 < rounds[-1]["test"]["balanced_accuracy"] <= 1
    assert "auroc" in (runs.clinic / "metrics.csv").read_text()
    assert {row["class"] for row in json.loads((runs.tables / "one.json").read_text())["predictions"]} == {
        "well",
        "ill",
    }


def test_it_is_compared_and_keeps_every_promise(runs: Runs, told: dict[str, str]) -> None:
    assert "| slow-server | 0.05 |" in told["compare"]
    assert "Test auroc in %" in (runs.tables / "results" / "clinics" / "table.md").read_text()
    assert "ok      a run gives the same bits twice" in told["check"]
    assert "FAILED" not in told["check"]


def test_another_release_of_it_is_refused_at_attendance(runs: Runs) -> None:
    assert runs.refused == 6, runs.refusal
    assert "the server has clinic-table==0.1.0" in runs.refusal
    assert "of clinic-table 0.2.0" in runs.refusal


def test_survival_without_classes_runs_over_mtls_predicts_and_is_compared(
    runs: Runs, told: dict[str, str]
) -> None:
    last = json.loads((runs.survival / "rounds.json").read_text())[-1]["test"]
    assert last["concordance"] > 0.7
    assert 0 < last["concordance_error"] < 0.05
    assert len(json.loads((runs.tables / "two.json").read_text())["predictions"]) == 40
    assert "| slow-server | 0.3 |" in told["compare survival"]
    assert "Test concordance" in (runs.tables / "results" / "survival" / "table.md").read_text()


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
