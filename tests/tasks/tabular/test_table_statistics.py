"""Means, deviations and categories are those of all sites together, and nothing rare leaves its site."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednc.client.app import flower_app
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.common.errors import ProtocolError
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Task, add_stats
from fednc.common.tasks.metrics import Stats
from fednc.tasks.tabular import cells
from fednc.tasks.tabular.inputs import Categories, TableInputs, TableSums
from fednc.tasks.tabular.options import TabularOptions
from fednc.tasks.tabular.reading import salt_of
from support import runs_on_grids
from support.clinic_tables import RARE, RUN, TASK, clinic, write, write_clinics
from support.runs_on_grids import in_one_process, over_the_link
from support.tcp_proxy import PIECE, Proxy

LEAST = 10


def made(task: Mapping[str, Any] = TASK, **tables: Any) -> Task:
    return discovery.get(parse_run({**RUN, "task": dict(task), **tables}))


def configs(specs: Mapping[str, str]) -> list[ClientConfig]:
    return [ClientConfig(name=name, data=spec, device="cpu", val_share=0.0) for name, spec in specs.items()]


def pooled(specs: Mapping[str, str]) -> pd.DataFrame:
    """As an analyst would do it in one place."""
    frames = [
        pd.read_csv(spec.removeprefix("csv:"), sep=";" if "bert" in spec else ",", encoding="utf-8-sig")
        for spec in specs.values()
    ]
    return pd.concat(frames, ignore_index=True)


def inputs_of(task: Task, sums: Stats) -> TableInputs:
    model = task.build_model()
    with torch.no_grad():
        task.with_data_sums(model, sums)
    (found,) = [module for module in model.modules() if isinstance(module, TableInputs)]
    return found


def total(task: Task, specs: Mapping[str, str], least: int = LEAST) -> Stats:
    sums = {name: zero.clone() for name, zero in task.no_data_sums().items()}
    for spec in specs.values():
        data = task.load_train(spec, None, None)
        mine = task.data_sums(data, least)
        task.check_data_sums(mine, data.examples)
        add_stats(sums, mine)
    return sums


def test_they_are_those_of_the_pooled_table(tmp_path: Path) -> None:
    specs = write_clinics(tmp_path)
    result = in_one_process(parse_run(RUN), configs(specs), flower_app.app)
    frame, state = pooled(specs), result.state.model
    numbers = frame[["age", "pressure", "crp"]].astype(float)
    smoker = (frame["smoker"] == "yes").astype(float)
    mean = [*numbers.mean(), smoker.mean()]
    deviation = [*numbers.std(ddof=0), smoker.std(ddof=0)]
    prefix = "backbone.0.numbers"
    assert np.allclose(state[f"{prefix}.mean"].numpy(), mean, rtol=1e-6, atol=0)
    assert np.allclose(state[f"{prefix}.deviation"].numpy(), deviation, rtol=1e-6, atol=0)
    assert state[f"{prefix}.may_miss"].tolist() == [0, 0, 1, 0]
    kept = set(state["backbone.0.categories.1.kept"].tolist()) - {-1}
    salt = salt_of(result.run)
    counted = frame["ward"].value_counts()
    frequent = [ward for ward, rows in counted.items() if rows >= LEAST]
    assert RARE not in frequent
    assert kept == set(cells.as_buckets(np.array(frequent, dtype=object), "ward", 4096, salt).astype(int).tolist())


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e9])
def test_digits_survive_a_mean_that_is_much_larger_than_the_deviation(scale: float, tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    values = scale * (1.7e4 + draw.normal(0, 1, 400))
    task = made({"name": "tabular", "target": "y", "classes": [0, 1], "numeric": ["x"]})
    sums = {name: zero.clone() for name, zero in task.no_data_sums().items()}
    for part in np.array_split(np.arange(400), 3):
        table = {"x": [repr(float(values[row])) for row in part], "y": [str(row % 2) for row in part]}
        add_stats(sums, task.data_sums(task.load_train(write(tmp_path / "x.csv", table), None, None), 1))
    numbers = inputs_of(task, sums).numbers
    assert float(numbers.mean[0]) == pytest.approx(values.mean(), rel=1e-6)
    assert float(numbers.deviation[0]) == pytest.approx(values.std(), rel=1e-6)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), parts=st.integers(1, 5))
def test_sums_of_any_shards_are_those_of_the_whole(seed: int, parts: int) -> None:
    draw = np.random.default_rng(seed)
    options = TabularOptions.model_validate({**{k: v for k, v in TASK.items() if k != "name"}, "buckets": 16})
    rows = torch.from_numpy(
        np.column_stack([draw.normal(size=(40, 4)), draw.integers(0, 2, 40), draw.integers(0, 16, 40)]).astype(
            float
        )
    )
    rows[torch.from_numpy(draw.random((40, 6)) < 0.2)] = torch.nan
    table = TableSums(options)
    added = table.zeros()
    order = draw.permutation(40)
    for part in np.array_split(order, parts):
        add_stats(added, table.sums(rows[torch.from_numpy(part)], 1))
    whole = table.sums(rows, 1)
    assert all(torch.allclose(value, added[name]) for name, value in whole.items())
    table.check(whole, 40)
    with pytest.raises(ProtocolError):
        table.check({name: value * 2 for name, value in whole.items()}, 40)


def test_the_order_of_rows_and_columns_changes_nothing(tmp_path: Path) -> None:
    table = clinic("anna", 80, 0)
    order = np.random.default_rng(1).permutation(80)
    mixed = {key: [table[key][row] for row in order] for key in sorted(table)}
    task = made()
    one, other = (
        task.load_train(write(tmp_path / f"{name}.csv", each), None, None)
        for name, each in (("a", table), ("b", mixed))
    )
    assert torch.equal(one.tensors[0][order].nan_to_num(-9), other.tensors[0].nan_to_num(-9))  # type: ignore[attr-defined]
    assert torch.equal(one.tensors[1][order], other.tensors[1])  # type: ignore[attr-defined]


# ---- what is withheld ----------------------------------------------------------------------------------------


def test_counts_below_the_minimum_stay_and_join_the_others(tmp_path: Path) -> None:
    specs = write_clinics(tmp_path)
    task = made()
    data = task.load_train(specs["bert"], None, None)
    sums = task.data_sums(data, LEAST)
    assert all(value == 0 or value >= LEAST for value in sums["category_1"].tolist())
    rare = int(cells.as_buckets(np.array([RARE], dtype=object), "ward", 4096, salt_of(task.run))[0])
    assert int(sums["category_1"][rare]) == 0
    assert int(task.data_sums(data, 1)["category_1"][rare]) == 2
    few = {"age": ["1"] * 9 + [""] * 21, "ward": ["x"] * 30}
    plain = made({**TASK, "numeric": ["age"], "boolean": [], "categorical": {"ward": []}})
    few["readmitted"] = ["no", "yes"] * 15
    sums = plain.data_sums(plain.load_train(write(tmp_path / "few.csv", few), None, None), LEAST)
    assert (int(sums["number_count"][0]), float(sums["number_sum"][0])) == (0, 0.0)
    assert int(sums["number_missing"][0]) == 21


class RecordingProxy(Proxy):
    """Keeps everything that goes to the server."""

    def __init__(self, target: int) -> None:
        self.sent = bytearray()
        super().__init__(target)

    async def _pass_on(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, client: asyncio.StreamWriter, *, up: bool
    ) -> None:
        read = source.read

        async def recorded(size: int = PIECE) -> bytes:
            data = await read(size)
            self.sent += data if up else b""
            return data

        source.read = recorded  # type: ignore[method-assign,assignment]
        await super()._pass_on(source, sink, client, up=up)


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RecordingProxy]]:
    """All clients of `over_the_link` go through one of these."""
    made: list[RecordingProxy] = []
    plain = runs_on_grids.LinkConfig

    def through_proxy(**keys: Any) -> Any:
        made.append(RecordingProxy(int(keys["server"].rpartition(":")[2])))
        return plain(**{**keys, "server": f"127.0.0.1:{made[-1].port}"})

    monkeypatch.setattr(runs_on_grids, "LinkConfig", through_proxy)
    yield made
    for proxy in made:
        proxy.close()


def test_no_text_of_a_category_leaves_its_site(tmp_path: Path, proxies: list[RecordingProxy]) -> None:
    specs = write_clinics(tmp_path)
    over_the_link(parse_run(RUN), configs(specs), flower_app.app, tmp_path, agreed=True)
    sent = b"".join(bytes(proxy.sent) for proxy in proxies)
    assert len(sent) > 3 * 8 * 4096, "the counts of the buckets were sent"
    assert b"bert" in sent, "texts that are sent can be found"
    for text in (RARE, *("surgery", "geriatrics", "cardiology"), "bert-4"):
        assert text.encode() not in sent


# ---- what is refused -----------------------------------------------------------------------------------------


def lie(sums: Stats, name: str, value: Tensor) -> Stats:
    return {**sums, name: value}


def test_sums_that_no_rows_have_are_refused(tmp_path: Path) -> None:
    specs = write_clinics(tmp_path)
    task = made({**TASK, "bounds": {"age": [0, 120]}})
    data = task.load_train(specs["anna"], None, None)
    sums, rows = task.data_sums(data, LEAST), data.examples
    task.check_data_sums(sums, rows)
    age = torch.zeros(4, dtype=torch.float64)
    age[0] = 61.0 * rows
    lies = {
        "more rows than there are": lie(sums, "number_count", sums["number_count"] + rows),
        "a negative count": lie(sums, "category_1", sums["category_1"] - 1),
        "one category with too many": lie(sums, "category_0", sums["category_0"] + rows),
        "missing values on top of all values": lie(sums, "number_missing", sums["number_missing"] + rows),
        "a mean beyond the bounds": {**sums, "number_sum": age, "number_square": (age / rows).square() * rows},
        "squares beyond the bounds": lie(sums, "number_square", sums["number_square"] + 3601.0 * rows),
        "squares below the mean's": lie(sums, "number_square", sums["number_square"] * 0),
    }
    accepted = [what for what, each in lies.items() if not refused(task, each, rows)]
    assert accepted == []


def refused(task: Task, sums: Stats, rows: int) -> bool:
    try:
        task.check_data_sums(sums, rows)
    except ProtocolError:
        return True
    return False


def test_values_are_clipped_to_the_bounds_before_they_are_summed(tmp_path: Path) -> None:
    table = {"age": ["50"] * 19 + ["5000"], "readmitted": ["no", "yes"] * 10}
    task = made({**TASK, "numeric": ["age"], "boolean": [], "categorical": {}, "bounds": {"age": [0, 100]}})
    data = task.load_train(write(tmp_path / "a.csv", table), None, None)
    sums = task.data_sums(data, 1)
    task.check_data_sums(sums, 20)
    inputs = inputs_of(task, sums)
    assert float(inputs.numbers.mean[0]) == pytest.approx((19 * 50 + 100) / 20)
    high, beyond = inputs(torch.tensor([[100.0], [5000.0]], dtype=torch.float64))
    assert torch.equal(high, beyond)


# ---- categories ----------------------------------------------------------------------------------------------


def test_listed_and_unlisted_categories_give_the_same_inputs(tmp_path: Path) -> None:
    specs = write_clinics(tmp_path)
    wards = sorted({"cardiology", "surgery", "geriatrics"})
    found = []
    for listed in ([], wards):
        task = made({**TASK, "categorical": {"ward": listed}, "most_categories": 3})
        inputs = inputs_of(task, total(task, specs))
        data = task.load_train(specs["bert"], None, None)
        encoded = inputs(data.tensors[0])[:, inputs.numbers.width :]  # type: ignore[attr-defined]
        assert encoded.shape[1] == 5
        found.append(encoded[:, [*torch.argsort(encoded[:, :3].sum(dim=0)).tolist(), 3, 4]])
    assert torch.equal(*found)
    rest = found[0][:, 3]
    assert int(rest.sum()) == 0, "no site had ten rows of other wards: nothing was trained for them"


def test_a_category_needs_a_minimum_over_all_sites_and_the_rest_are_others() -> None:
    column = Categories(0, 4, 0)
    options = TabularOptions.model_validate(
        {"target": "y", "classes": [0, 1], "categorical": {"c": []}, "buckets": 16, "min_count": 30}
    )
    table = TableSums(options)
    count = torch.zeros(18, dtype=torch.int64)
    count[[3, 5, 9]] = torch.tensor([40, 29, 30])
    inputs = TableInputs(options)
    table.put(inputs, {**table.zeros(), "category_0": count})
    (column,) = inputs.categories  # type: ignore[assignment]
    assert set(column.kept.tolist()) == {3, 9, -1}
    assert column.seen.tolist() == [1, 0]
    codes = torch.tensor([3.0, 5.0, torch.nan, cells.UNKNOWN], dtype=torch.float64)
    assert column(codes).sum(dim=1).tolist() == [1, 1, 0, 1]
    assert column(codes)[1].tolist() == column(codes)[3].tolist(), "both are others"


def test_another_run_has_other_buckets() -> None:
    text = np.array(["surgery"], dtype=object)
    salts = [salt_of(parse_run({**RUN, "seed": seed})) for seed in range(8)]
    assert len({float(cells.as_buckets(text, "ward", 4096, salt)[0]) for salt in salts}) > 4


def test_without_sums_listed_categories_and_bounds_still_give_a_scale() -> None:
    task = made({**TASK, "bounds": {"age": [0, 120]}})
    inputs = inputs_of(task, task.no_data_sums())
    assert (float(inputs.numbers.mean[0]), float(inputs.numbers.mean[1])) == (60.0, 0.0)
    assert inputs.categories[0].kept.tolist() == [0, 1]  # type: ignore[operator,union-attr]
