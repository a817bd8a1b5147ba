"""`fednc bench trainer`, and the low precision that it can measure: layers in bf16, everything else in float32."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fednc.cli.main import app
from fednc.client.app.flower_app import app as fednc_app
from fednc.common.config.run import parse_run
from fednc.common.learning.heads import FrameHead
from fednc.common.learning.losses import View, objective
from fednc.common.learning.round_context import GLOBAL, PREVIOUS
from support.contract_run import config, run_on_local
from support.loss_inputs import LABEL_B, B, D, guide_for, normal


@pytest.mark.parametrize(
    "method", [{"anchor": 1.0, "centre": 1.0, "target_blend": 0.3}, {"contrast": 1.0, "distil": 1.0}]
)
def test_losses_are_as_exact_in_low_precision(method: dict[str, float]) -> None:
    guide = guide_for(name="fednc", **method)
    guide = type(guide)(**{**vars(guide), "etf_KD": guide.etf_KD.float(), "mean_KD": guide.mean_KD.float()})
    feat_BD, head = normal(B, D).bfloat16(), FrameHead(8.0, False)
    views = {
        name: View(normal(B, D, seed=i).bfloat16(), normal(B, len(guide.seen_K), seed=i).bfloat16())
        for i, name in enumerate([GLOBAL, PREVIOUS])
    }
    wide = {name: View(view.feat_BD.float(), view.logit_BK.float()) for name, view in views.items()}
    fine, _ = objective(feat_BD.float(), LABEL_B, head, guide, views=wide)
    with torch.autocast("cpu", torch.bfloat16):
        coarse, parts = objective(feat_BD, LABEL_B, head, guide, views=views)
    assert coarse.dtype == torch.float32
    assert torch.equal(coarse, fine)
    assert len(parts) == 3


def test_low_precision_training_changes_little_and_sends_float32(tmp_path: Path) -> None:
    results = [
        run_on_local(config(train={"precision": precision}), fednc_app, tmp_path) for precision in ("fp32", "bf16")
    ]
    fine, coarse = (result.state.model for result in results)
    assert {value.dtype for value in coarse.values()} == {torch.float32}
    assert any(not torch.equal(fine[key], coarse[key]) for key in fine), "bf16 was not used"
    losses = [[r.loss for r in result.history.rounds] for result in results]
    for one, other in zip(*losses, strict=True):
        assert one is not None
        assert other == pytest.approx(one, rel=0.02)


@pytest.mark.parametrize(("model", "precision"), itertools.product(["cnn"], ["fp32", "bf16"]))
def test_the_command_reports_speed_and_the_cost_of_the_method(model: str, precision: str) -> None:
    told = CliRunner().invoke(
        app,
        [
            "bench",
            "trainer",
            "--model",
            model,
            "--width",
            "8",
            "--images",
            "96",
            "--repeats",
            "1",
            "--device",
            "cpu",
            "--precision",
            precision,
            "--json",
            "-",
        ],
    )
    assert told.exit_code == 0, told.stderr
    (row,) = json.loads(told.stdout)["results"]
    assert (row["model"], row["precision"], row["images"], row["device"]) == (model, precision, 96, "cpu")
    for name in ("fednc", "fedavg"):
        overhead = row["plain_images_s"] / row[f"{name}_images_s"] - 1
        assert row[f"{name}_overhead"] == pytest.approx(overhead, abs=0.01 * (1 + abs(overhead)))
    assert row["plain_tflop_s"] > 0
    assert row["ratio"] == pytest.approx(row["plain_tflop_s"] / row["product_tflop_s"], abs=1e-3)


def test_an_unknown_precision_is_refused() -> None:
    told = CliRunner().invoke(app, ["bench", "trainer", "--precision", "fp8"])
    assert told.exit_code == 2
    assert "--precision fp8" in told.stderr
    with pytest.raises(Exception, match="precision"):
        parse_run({"train": {"precision": "fp8"}})
