"""A sixth read-out is one class and one registration; everything else finds it in the registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fednc.bench.compare.plan import Row
from fednc.cli.config_docs import page
from fednc.cli.predict import _predictions
from fednc.client.app.flower_app import app as fednc_app
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError
from fednc.common.learning.readout import READOUTS, MemoryReadOut, ReadOut
from fednc.common.learning.round_context import Guide
from fednc.common.model_export import load
from fednc.common.registry import Registry
from fednc.server.rounds.result_files import write_files
from support.contract_run import CLIENTS, config
from support.runs_on_grids import over_the_link

ALWAYS = 3


class AlwaysThree(MemoryReadOut):
    """Predicts class 3, if it has a memory with a metric."""

    name, summary = "always-three", "nothing: class 3 is the answer"
    needs_moments = True

    def compare(self, unit_BD: Tensor, guide: Guide, scale: Tensor | float) -> Tensor:
        """See MemoryReadOut."""
        assert guide.metric_DD is not None
        score_K = torch.zeros_like(guide.seen_K, dtype=torch.float32)
        score_K[ALWAYS] = 1
        return score_K.expand(len(unit_BD), -1)


@pytest.fixture
def always_three() -> Iterator[None]:
    READOUTS.register(AlwaysThree)
    yield
    del READOUTS.entries[AlwaysThree.name]


def run_with(readout: str) -> RunConfig:
    return config(method={"name": "fednc", "readout": readout}, rounds={"total": 1})


def test_it_is_unknown_until_it_is_registered() -> None:
    with pytest.raises(
        ConfigError, match=r"method\.readout: Input should be 'head', .* \(given: 'always-three'\)"
    ):
        run_with("always-three")
    assert "always-three" not in page()


@pytest.mark.usefixtures("always_three")
def test_run_export_and_prediction_use_it(tmp_path: Path) -> None:
    assert "`always-three`: nothing: class 3 is the answer" in page()
    run = run_with("always-three")
    result = over_the_link(
        run, CLIENTS, fednc_app, tmp_path, agreed=True
    )  # there is a metric, so moments were agreed
    test = result.history.rounds[-1].test
    assert {name: value for name, value in test.items() if name.startswith("accuracy/")} == {
        f"accuracy/{i}": float(i == ALWAYS) for i in range(10)
    }
    write_files(tmp_path, result, {})
    model = load(tmp_path)
    found = _predictions(model, model.task.load_input("digits"), None)
    assert {row["class"] for row in found.rows} == {str(ALWAYS)}


@pytest.mark.usefixtures("always_three")
def test_it_trains_like_the_others_that_do_not_affect_training() -> None:
    runs = [run_with(name) for name in ("always-three", "vertex")]
    rows = [Row(kind="final", setting="s", variant="v", seed=0, lr=0.1, run=run, data_sha256="") for run in runs]
    assert rows[0].training == rows[1].training
    assert rows[0].digest != rows[1].digest
    assert runs[0].method.needs_moments("global", is_first=True)
    assert not runs[0].method.needs_moments("global", is_first=False)
    assert not runs[1].method.uses_memory


def test_names_are_registered_once() -> None:
    registry = Registry[MemoryReadOut]("method.readout")
    registry.register(AlwaysThree)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(AlwaysThree)
    with pytest.raises(ConfigError, match="'nope' is not known here; choose one of always-three"):
        registry.get("nope")


@pytest.mark.parametrize("head", ["linear", "cosine", "frame"])
@pytest.mark.parametrize("readout", READOUTS, ids=READOUTS.names())
def test_a_head_works_with_the_read_outs_whose_needs_it_meets(head: str, readout: ReadOut) -> None:
    values = {"name": "fedavg", "head": head, "readout": readout.name}
    fits = not (readout.needs_vertices and head != "frame") and not (readout.needs_head and head == "frame")
    if fits:
        assert parse_run({"method": values}).method.readout == readout.name
        return
    with pytest.raises(
        ConfigError, match=r"no vertices: .* 'memory', 'cosine', 'discriminant' or 'ridge'|no trained head"
    ):
        parse_run({"method": values})
