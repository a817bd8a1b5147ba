"""The models of tables: the contract of every task, regression against its closed form, class weights,
defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import fednc
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError, DataError
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.losses import cross_entropy, dot_regression
from fednc.common.model_export import load
from fednc.common.tasks import discovery
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.evaluation import evaluate
from fednc.common.tasks.round_guide import guide_at
from fednc.tasks.image.task import ImageTask
from fednc.tasks.tabular.task import TabularRegression, TabularTask
from fednc.testing import TaskContract
from support.clinic_tables import RUN, TASK, clinic, write, write_clinics


@pytest.fixture(autouse=True, scope="module")
def _contract_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("contract")
    table = clinic("anna", 240, 0)
    spec = write(folder / "a.csv", table)
    for contract in (TestClasses, TestNumbers, TestSuggested):
        contract.data = spec


class TestClasses(TaskContract):
    task = "tabular"
    options: ClassVar = {k: v for k, v in TASK.items() if k != "name"} | {
        "class_weights": "balanced",
        "dropout": 0.2,
    }
    tables: ClassVar = {"frame": {"dim": 8}, "method": {"name": "fednc"}}


class TestNumbers(TaskContract):
    task = "tabular"
    options: ClassVar = {
        "kind": "regression",
        "target": "pressure",
        "numeric": ["age", "crp"],
        "categorical": {"ward": []},
        "embedding": 3,
        "bounds": {"pressure": [0, 3000], "age": [0, 120]},
    }
    tables: ClassVar = {"method": {"name": "fedavg"}, "train": {"optimizer": "adamw", "lr": 0.01}}


class TestSuggested(TaskContract):
    task = "tabular"
    tables: ClassVar = {"frame": {"dim": 8}}


# ---- regression ----------------------------------------------------------------------------------------------


def regression_table(seed: int, rows: int) -> dict[str, list[str]]:
    draw = np.random.default_rng(seed)
    one, two = draw.normal(40 + seed, 9, rows), draw.normal(-3, 2, rows)
    cost = 5000 + 130 * one - 400 * two + draw.normal(0, 300, rows)
    return {
        name: [repr(float(x)) for x in values] for name, values in (("one", one), ("two", two), ("cost", cost))
    }


LINE: dict[str, Any] = {
    "task": {
        "name": "tabular",
        "kind": "regression",
        "model": "linear",
        "target": "cost",
        "numeric": ["one", "two"],
    },
    "method": {"name": "fedavg"},
    # One full batch per round is one step of gradient descent on the pooled data.
    "train": {"batch": 1000, "lr": 0.3, "momentum": 0.0, "weight_decay": 0.0},
    "rounds": {"total": 40, "evaluate_every": 0},
}


def test_federated_regression_is_least_squares_on_the_pooled_rows(tmp_path: Path) -> None:
    tables = [regression_table(seed, 60 + 30 * seed) for seed in range(3)]
    specs = {f"c{seed}": write(tmp_path / f"{seed}.csv", table) for seed, table in enumerate(tables)}
    test = write(tmp_path / "test.csv", regression_table(7, 50))
    values = {**LINE, "evaluate": {"test": test}}
    result = fednc.run(values, specs, folder=tmp_path / "r", device="cpu", val_share=0.0, progress=False)
    pooled = np.concatenate(
        [np.array([table[name] for name in ("one", "two", "cost")], float).T for table in tables]
    )
    design = np.column_stack([np.ones(len(pooled)), pooled[:, :2]])
    solution, *_ = np.linalg.lstsq(design, pooled[:, 2], rcond=None)
    model = load(tmp_path / "r")
    data = model.task.load_input(test)
    rows = data.tensors[0].numpy()  # type: ignore[attr-defined]
    expected = np.column_stack([np.ones(len(rows)), rows]) @ solution
    assert np.allclose(model(data.tensors[0]).detach().numpy(), expected, rtol=1e-4)  # type: ignore[attr-defined]
    wanted = data.tensors[1].numpy()  # type: ignore[attr-defined]
    error = expected - wanted
    last = result.history.rounds[-1].test
    assert last["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
    assert last["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert last["r2"] == pytest.approx(1 - (error**2).sum() / ((wanted - wanted.mean()) ** 2).sum(), rel=1e-4)
    assert last["r2"] > 0.9


def test_the_target_is_never_of_one_site(tmp_path: Path) -> None:
    tables = [regression_table(seed, 40) for seed in range(2)]
    specs = {f"c{seed}": write(tmp_path / f"{seed}.csv", table) for seed, table in enumerate(tables)}
    values = {**LINE, "rounds": {"total": 1}}
    result = fednc.run(values, specs, device="cpu", val_share=0.0, progress=False)
    cost = np.array([*tables[0]["cost"], *tables[1]["cost"]], float)
    state = result.model.model.state_dict()
    assert float(state["mean"]) == pytest.approx(cost.mean(), rel=1e-6)
    assert float(state["deviation"]) == pytest.approx(cost.std(), rel=1e-6)


def test_kind_chooses_the_class_and_methods_of_classes_are_refused() -> None:
    assert type(discovery.get(parse_run(LINE))) is TabularRegression
    assert type(discovery.get(parse_run(RUN))) is TabularTask
    with pytest.raises(ConfigError, match="'fednc' needs classes"):
        discovery.get(parse_run({**LINE, "method": {"name": "fednc"}}))


def test_rows_without_a_target_are_left_out_and_text_is_refused(tmp_path: Path) -> None:
    task = discovery.get(parse_run(LINE))
    table = {"one": ["1", "2", "3"], "two": ["1", "2", "3"], "cost": ["5", "", "7"]}
    assert task.load_train(write(tmp_path / "a.csv", table), None, None).examples == 2
    with pytest.raises(DataError, match="column 'cost': row 2: 'much' is not a number"):
        task.load_train(write(tmp_path / "b.csv", {**table, "cost": ["5", "much", "7"]}), None, None)


# ---- class weights -------------------------------------------------------------------------------------------


def test_balanced_weights_follow_from_the_classes_of_all_sites(tmp_path: Path) -> None:
    specs = write_clinics(tmp_path)
    values = {**RUN, "task": {**TASK, "class_weights": "balanced"}}
    result = fednc.run(values, specs, device="cpu", val_share=0.0, progress=False)
    task = result.model.task
    count_K = sum(task.load_train(spec, None, None).count_K for spec in specs.values())
    expected = count_K.sum() / (2 * count_K)  # type: ignore[union-attr]
    assert torch.allclose(result.model.model.class_weight, expected.float(), rtol=1e-6)
    assert float((result.model.model.class_weight * count_K).sum()) == pytest.approx(float(count_K.sum()))  # type: ignore[union-attr]
    assert task.aggregation("class_weight") == Aggregation.FIXED


def test_a_weighted_loss_counts_examples_as_often_as_they_weigh() -> None:
    draw = torch.Generator().manual_seed(0)
    score_BK, label_B = torch.randn(9, 3, generator=draw), torch.tensor([0, 1, 2] * 3)
    weight_K = torch.tensor([1.0, 2.0, 3.0])
    repeats_B = weight_K[label_B].long()
    again = cross_entropy(score_BK.repeat_interleave(repeats_B, 0), label_B.repeat_interleave(repeats_B))
    weighted = cross_entropy(score_BK, label_B, weight_K=weight_K)
    assert float(weighted) == pytest.approx(float(again) * 18 / 9, rel=1e-6)
    only_one = torch.zeros(4, dtype=torch.int64)
    plain = cross_entropy(score_BK[:4], only_one)
    assert float(cross_entropy(score_BK[:4], only_one, weight_K=3 * weight_K)) == pytest.approx(3 * float(plain))
    feat_BD, frame_KD = torch.randn(9, 2, generator=draw), torch.eye(3, 2)
    ones = dot_regression(feat_BD, label_B, frame_KD, torch.ones(3))
    assert torch.equal(ones, dot_regression(feat_BD, label_B, frame_KD))


def test_weights_of_the_run_file_are_used_and_other_classifiers_have_them_too(tmp_path: Path) -> None:
    images = {"name": "image", "classes": list("0123456789"), "size": 8, "channels": 1, "width": 8}
    with_weights = discovery.get(parse_run({"task": {**images, "class_weights": "balanced"}}))
    assert isinstance(with_weights, ImageTask)
    assert set(with_weights.no_data_sums()) == {"class_count"}
    assert "class_weight" in with_weights.build_model().state_dict()
    without = discovery.get(parse_run({"task": images}))
    assert without.no_data_sums() == {}
    assert "class_weight" not in without.build_model().state_dict()
    spec = write_clinics(tmp_path)["anna"]
    losses = []
    for weights in ([1.0, 1.0], [1.0, 5.0]):
        task = discovery.get(parse_run({**RUN, "task": {**TASK, "class_weights": weights}}))
        torch.manual_seed(0)
        model = task.build_model()
        data = task.load_train(spec, None, None)
        frame = task.frame(0)
        guide = guide_at(task, frame.etf_KD, ClassMemory.empty(2, 8), 1, count_K=data.count_K)
        losses.append(float(task.loss(model, next(iter(data.eval_batches(999))), guide)[0].detach()))
    assert losses[1] > 1.5 * losses[0]


# ---- metrics, model and export -------------------------------------------------------------------------------


def test_the_primary_metric_is_a_key_of_the_run_file(tmp_path: Path) -> None:
    assert discovery.get(parse_run(RUN)).primary.name == "auroc"
    chosen = parse_run({**RUN, "evaluate": {"metric": "f1"}})
    assert discovery.get(chosen).primary.name == "f1"
    assert chosen.digest != parse_run(RUN).digest
    result = fednc.run(chosen, write_clinics(tmp_path), device="cpu", progress=False)
    assert result.history.primary.name == "f1"
    with pytest.raises(
        ConfigError, match=r"'recall' is not a metric of task 'tabular', which has auroc, accuracy"
    ):
        discovery.get(parse_run({**RUN, "evaluate": {"metric": "recall"}}))


@pytest.mark.parametrize("keys", [{"model": "linear"}, {"embedding": 4}, {"hidden": [16], "dropout": 0.1}])
def test_a_model_learns_and_predicts_the_same_when_it_is_loaded(keys: dict[str, Any], tmp_path: Path) -> None:
    specs = write_clinics(tmp_path)
    test = write(tmp_path / "test.csv", clinic("test", 200, 1))
    values = {
        **RUN,
        "task": {**TASK, **keys},
        "rounds": {"total": 6, "evaluate_every": 0},
        "evaluate": {"test": test},
    }
    result = fednc.run(values, specs, folder=tmp_path / "r", device="cpu", progress=False)
    last = result.history.rounds[-1].test
    assert last["auroc"] > 0.85
    model = load(tmp_path / "r")
    data, guide = model.task.load_test(test), model.guide
    before = model.task.measure(evaluate(model.task, model.model, data, replace(guide, temperature=1.0), 256))
    assert before["auroc"] == last["auroc"]
    assert guide.temperature != 1
    after = model.task.measure(evaluate(model.task, model.model, data, guide, 256))
    assert after["accuracy"] == last["accuracy"]  # a temperature changes no prediction, and no order of examples
    assert after["auroc"] == pytest.approx(last["auroc"], abs=last["auroc_error"] + after["auroc_error"])


def test_a_site_that_lacks_values_where_nobody_else_does_gets_no_untrained_weights(tmp_path: Path) -> None:
    specs = {"a": write(tmp_path / "a.csv", clinic("a", 60, 0))}
    task = {**TASK, "numeric": ["age"], "boolean": [], "categorical": {}}
    values = {**RUN, "task": task, "rounds": {"total": 1, "min_clients": 1}}
    model = fednc.run(values, specs, device="cpu", val_share=0.0, progress=False).model
    mean = model.model.backbone[0].numbers.mean
    absent, average = model(torch.full((1, 1), torch.nan, dtype=torch.float64)), model(mean[None])
    assert torch.equal(absent, average)
