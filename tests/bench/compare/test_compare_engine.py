"""`fednc compare`: fair by construction, resumable, one archive of all runs, nothing counted twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from fednc.bench.compare import report
from fednc.bench.compare.engine import compare
from fednc.bench.compare.plan import tuning_rows
from fednc.bench.compare.prepared_data import prepare
from fednc.bench.compare.rows import Bench, run_rows
from fednc.bench.compare.run_archive import archive_runs, read_runs, write_run
from fednc.bench.compare.training import HistoryOfReadOut
from fednc.cli.main import app
from fednc.common.config.evaluate import EvaluateSection
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError, DataError
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.memory_controls import Memories
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.history import RoundRecord
from support.small_comparison import CONFIGS, reduced


def bench(folder: Path, workers: int = 1) -> Bench:
    return Bench(folder=folder, command="fednc compare reduced.toml", workers=workers)


def without_time(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k not in ("duration_s", "shared_by", "machine", "commit")}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, report.Compared]:
    folder = tmp_path_factory.mktemp("compared")
    shares: list[float] = []
    compared = compare(reduced(), {}, bench(folder), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return folder, compared


def test_every_run_has_a_row_that_says_how_to_repeat_it(done: tuple[Path, report.Compared]) -> None:
    folder, compared = done
    assert not list(folder.glob("*.json")), "all runs are in the archive"
    found = read_runs(folder)
    assert len(found) == len(compared.tuning) + len(compared.final) == 4 + 4
    assert len({row["digest"] for row in found.values()}) == len(found)
    for name, row in found.items():
        assert row["digest"][:12] in name
        assert not row["failed"]
        assert [one["round"] for one in row["rounds"]] == [1, 2]
        assert all(0 <= one["accuracy"] <= 1 for one in row["rounds"])
        assert row["machine"]["cpu"]
        assert row["command"] == "fednc compare reduced.toml"
        assert str(folder) not in json.dumps(row), "a path of this machine"


def test_rates_are_tuned_on_data_and_seeds_that_are_not_reported(done: tuple[Path, report.Compared]) -> None:
    _, compared = done
    assert {row["seed"] for row in compared.tuning} == {1000}
    assert {row["seed"] for row in compared.final} == {1, 2}
    assert {row["data_sha256"] for row in compared.tuning}.isdisjoint(row["data_sha256"] for row in compared.final)
    for (setting, variant), rate in compared.rates.items():
        tried = {r["lr"]: r["summary"]["last5"] for r in compared.tuning if r["variant"] == variant}
        assert tried[rate] == max(tried.values())
        assert {row["lr"] for row in compared.of(setting, variant)} == {rate}


def test_variants_that_differ_in_one_line_may_share_a_rate(tmp_path: Path) -> None:
    variants = [
        {"name": name, "rate_like": like, "method": {"name": "fednc", "readout": "vertex", "anchor": anchor}}
        for name, like, anchor in (("fednc", "", 0.0), ("pulled", "fednc", 1.0))
    ]
    compared = compare(reduced(variants=variants, baseline="fednc", seeds=[1]), {}, bench(tmp_path))
    assert {row["variant"] for row in compared.tuning} == {"fednc"}
    assert len({row["lr"] for row in compared.final}) == 1
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.count("| pulled |") == 1, "in the results, not in the tuning table"
    with pytest.raises(ValueError, match="rate_like = 'fednc' of 'fednc' is not a tuned variant"):
        reduced(variants=[{**one, "rate_like": "fednc"} for one in variants], baseline="fednc")


@pytest.mark.parametrize("kind", ["tuning", "final"])
def test_existing_results_are_not_run_again(kind: str, done: tuple[Path, report.Compared], tmp_path: Path) -> None:
    """Of eight rows one is lost, two have a file of their own and five are in an archive."""
    shares: list[float] = []
    folder, compared = done
    before = read_runs(folder)
    lost = next(name for name, row in before.items() if row["kind"] == kind)
    kept = [name for name in before if name != lost]
    for name in kept[2:]:
        write_run(tmp_path, before[name])
    archive_runs(tmp_path)
    for name in kept[:2]:
        write_run(tmp_path, before[name])
    again = compare(reduced(), {}, bench(tmp_path), shares.append)
    rounds = len(before[lost]["rounds"])
    assert shares == sorted(shares)
    assert {*shares} >= {i / rounds for i in range(1, rounds + 1)}, "progress is of what is missing"
    after = read_runs(tmp_path)
    assert {name for name in before if after[name] != before[name]} <= {lost}
    assert without_time(after[lost]) == without_time(before[lost])
    assert [row["digest"] for row in again.final] == [row["digest"] for row in compared.final]


def test_processes_give_the_same_figures(done: tuple[Path, report.Compared], tmp_path: Path) -> None:
    plan, rounds = reduced(), []
    data, _ = prepare(plan, {}, tmp_path)
    rows = tuning_rows(plan, data.sha256)[:2]
    spawned = run_rows(rows, data, bench(tmp_path, workers=2), rounds.append)
    here = {row["digest"]: without_time(row) for row in done[1].tuning}
    assert [without_time(row) for row in spawned] == [here[row.digest] for row in rows]
    assert sum(rounds) == 4


def test_rows_that_share_a_training_run_have_the_figures_of_separate_runs(tmp_path: Path) -> None:
    read_outs = [
        ("vertex", "memory"),
        ("memory", "memory"),
        ("memory", "own"),
        ("blend", "stale"),
        ("discriminant", "memory"),
        ("discriminant", "own"),
        ("discriminant", "stale"),
    ]
    variants = [
        {"name": "fedavg", "method": {"name": "fedavg"}},
        {"name": "fedavg+discriminant", "method": {"name": "fedavg", "readout": "discriminant"}},
    ] + [
        {"name": f"{how}-{source}", "method": {"name": "fednc", "readout": how, "memory_source": source}}
        for how, source in read_outs
    ]
    plan = reduced(variants=variants, tuning={"rates": [0.1], "seed": 1000}, seeds=[1])
    data, _ = prepare(plan, {}, tmp_path)
    rows = tuning_rows(plan, data.sha256)
    for name in ("together", "alone"):
        (tmp_path / name).mkdir()
    together = run_rows(rows, data, bench(tmp_path / "together"))
    alone = [run_rows([row], data, bench(tmp_path / "alone"))[0] for row in rows]
    assert [one["shared_by"] for one in together] == [2, 2] + [len(read_outs)] * len(read_outs)
    assert [without_time(one) for one in together] == [without_time(one) for one in alone]
    assert len({json.dumps(one["rounds"]) for one in together}) == len(rows)


def test_a_missing_figure_is_not_taken_from_another_read_out() -> None:
    """A class that the memory has not seen yet gives an infinite loss, which records leave out."""
    plan = reduced(tuning={"rates": [0.1], "seed": 1000}, seeds=[1])
    run = next(row.run for row in tuning_rows(plan, "0") if row.variant == "fednc")
    training = FederatedRun(run.model_copy(update={"evaluate": EvaluateSection(test="digits")}), EventLog())
    seen_K = torch.arange(10) > 0
    memory = ClassMemory(mean_KD=training.frame.etf_KD * seen_K[:, None], seen_K=seen_K)
    training.state.memories = Memories.all_from(memory)
    other = HistoryOfReadOut(
        parse_run({**run.model_dump(), "method": {"name": "fednc", "readout": "memory"}}), training
    )
    other.take(RoundRecord(round=1, test={"accuracy": 2.0, "loss": 3.0, "accuracy/0": 4.0, "nc1": 5.0}))
    (record,) = other.history.rounds
    assert "loss" not in record.test
    assert record.test["nc1"] == 5.0
    assert record.test["accuracy"] <= 1
    assert record.test["accuracy/0"] == 0.0


def test_only_rows_that_train_alike_share_a_training_run() -> None:
    base = {"name": "fednc", "anchor": 1.0, "readout": "vertex"}
    changes = [{}, {"readout": "memory"}, {"memory_source": "vertex"}, {"anchor": 2.0}, {"anchor": 0.0}]
    variants = [{"name": f"v{i}", "method": {**base, **change}} for i, change in enumerate(changes)]
    rows = tuning_rows(reduced(variants=variants, baseline="v0", tuning={"rates": [0.1], "seed": 1000}), "0")
    assert len({row.training for row in rows}) == len(rows), "the memory affects training"
    unused = [{**v, "method": {**v["method"], "anchor": 0.0}} for v in variants[:2]]
    rows = tuning_rows(reduced(variants=unused, baseline="v0", tuning={"rates": [0.1, 0.3], "seed": 1000}), "0")
    assert [rows[0].training, rows[1].training] == [rows[2].training, rows[3].training]
    assert rows[0].training != rows[1].training


def test_table_and_pictures(done: tuple[Path, report.Compared]) -> None:
    folder, compared = done
    table = (folder / "table.md").read_text(encoding="utf-8")
    rows = compared.of("dirichlet-0.1", "fednc")
    mean = 50 * sum(row["summary"]["last5"] for row in rows)
    assert f"| fednc | {compared.rates['dirichlet-0.1', 'fednc']:g} | {mean:.1f} ± " in table
    for kind in ("accuracy", "geometry", "alignment"):
        with Image.open(folder / f"dirichlet-0.1-{kind}.png") as picture:
            assert picture.width > 400


def test_a_run_that_diverges_is_a_result_but_is_never_chosen(tmp_path: Path) -> None:
    plan = reduced(seeds=[1], tuning={"rates": [0.1, 1e30], "seed": 1000})
    compared = compare(plan, {}, bench(tmp_path))
    failed = [row for row in compared.tuning if row["failed"]]
    assert {row["lr"] for row in failed} == {1e30}
    assert set(compared.rates.values()) == {0.1}
    assert "| failed |" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_validation_images_are_training_images_that_are_not_trained_on(tmp_path: Path) -> None:
    tuning, final = (np.load(one.path) for one in prepare(reduced(data={"source": "digits"}), {}, tmp_path))

    def rows(images: np.ndarray) -> set[bytes]:
        return {image.tobytes() for image in images}

    assert len(tuning["x_train"]) + len(tuning["x_test"]) == len(final["x_train"])
    assert len(final["x_train"]) + len(final["x_test"]) == len(load_digits().target)
    assert rows(tuning["x_train"]) | rows(tuning["x_test"]) == rows(final["x_train"])
    assert not rows(tuning["x_train"]) & rows(tuning["x_test"])
    assert not rows(final["x_train"]) & rows(final["x_test"])


def result(
    lr: float, last5: float | None, accuracies: list[float], seed: int = 1, variant: str = "a"
) -> dict[str, Any]:
    rounds = [{"round": number, "accuracy": value} for number, value in enumerate(accuracies, start=1)]
    summary = {} if last5 is None else {"last5": last5, "best": max(accuracies)}
    return {"setting": "s", "variant": variant, "lr": lr, "seed": seed, "summary": summary, "rounds": rounds}


def test_the_smaller_of_two_equal_rates_is_chosen_and_a_failed_one_never() -> None:
    tuning = [result(0.3, None, []), result(0.1, 0.5, [0.5]), result(0.03, 0.5, [0.5]), result(0.01, 0.4, [0.6])]
    assert report.choose_rates(tuning) == {("s", "a"): 0.03}


def test_rounds_to_target_are_counted_seed_by_seed() -> None:
    plan = reduced().model_copy(update={"baseline": "a"})
    final = [
        result(0.1, 0.5, [0.1, 0.5, 0.4], seed=1),
        result(0.1, 0.7, [0.1, 0.6, 0.9], seed=2),
        result(0.1, 0.5, [0.5, 0.6, 0.6], seed=1, variant="b"),
        result(0.1, 0.5, [0.5, 0.6, 0.8], seed=2, variant="b"),
    ]
    compared = report.Compared(plan=plan, tuning=[], rates={}, final=final)
    assert compared.rounds_to_target("s", "a") == [2, 3]
    assert compared.rounds_to_target("s", "b") == [1, None]


def test_damaged_results_are_not_used(tmp_path: Path) -> None:
    plan = reduced(seeds=[1], tuning={"rates": [0.1], "seed": 1000})
    row = tuning_rows(plan, prepare(plan, {}, tmp_path)[0].sha256)[0]
    (tmp_path / row.file_name).write_text("{")
    with pytest.raises(DataError, match="Delete it"):
        compare(plan, {}, bench(tmp_path))


def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    fashion = next(path for path in CONFIGS if path.name == "cpu-fashion.toml")
    runner = CliRunner()
    said = runner.invoke(app, ["compare", str(fashion), "--results", str(tmp_path)])
    assert said.exit_code == ConfigError.exit_code
    assert "--data fashion=PATH" in said.stderr
    said = runner.invoke(app, ["compare", str(fashion), "--data", "fashion", "--results", str(tmp_path)])
    assert (said.exit_code, "expected NAME=PATH" in said.stderr) == (ConfigError.exit_code, True)
