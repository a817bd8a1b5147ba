"""Models of timm: built without a network, sized and normalised as they were made, frozen, adapted, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fednc.client.app.flower_app import app
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError, MissingExtraError
from fednc.common.model_export import load
from fednc.common.tasks import discovery
from fednc.server.rounds.result_files import summary_of, write_files
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.tasks.image.task import ImageTask
from fednc.tasks.vision import timm_models
from support.multitask_tasks import model_of, multitask, outputs_of
from support.runs_on_grids import in_one_process
from support.segmentation_tasks import segmentation_task

try:
    import timm
except (ImportError, RuntimeError):  # an unfitting torchvision raises RuntimeError
    timm = None

needs_timm = pytest.mark.skipif(timm is None, reason="timm and torchvision are not installed: make test-timm")
CLASSES = [str(i) for i in range(10)]
CONVNEXT, RESNET, VIT = "timm:test_convnext", "timm:test_resnet", "timm:test_vit"


def config(model: str = CONVNEXT, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "task": {"classes": CLASSES, "model": model, "size": 32, "channels": 1, "resize": True},
        "frame": {"dim": 16},
        "rounds": {"total": 1, "min_clients": 2},
        "split": {"parts": 2, "kind": "iid"},
        "evaluate": {"test": "digits"},
    }
    return parse_run({**values, **{k: {**values.get(k, {}), **v} for k, v in changes.items()}})


def clients() -> list[ClientConfig]:
    return [ClientConfig(name=f"c{i}", data="digits", device="cpu", val_share=0.1) for i in range(2)]


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:someone/model",
        "timm:hf-hub:someone/model",
        "timm:local-dir:/tmp/x",
        "timm:../x",
        "timm:",
        "resnet50",
    ],
)
def test_only_plain_names_are_taken(name: str) -> None:
    """timm would fetch what `hf-hub:` names, and read what `local-dir:` names."""
    with pytest.raises(ConfigError, match=r"task\.model"):
        discovery.get(config(name))


@pytest.mark.skipif(timm is not None, reason="timm is installed")
def test_without_timm_the_error_names_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"fednc\[timm\]"):
        discovery.get(config())


@needs_timm
@pytest.mark.parametrize("model", [CONVNEXT, RESNET, VIT, "timm:mobilenetv3_small_050"])
def test_models_give_features_of_the_stated_width(model: str) -> None:
    task = discovery.get(config(model))
    assert isinstance(task, ImageTask)
    backbone, width = task.backbone()
    assert backbone(torch.rand(2, 1, 32, 32)).shape == (2, width)
    assert task.width == width
    state = torch.get_rng_state()
    assert task.width == width
    assert torch.equal(torch.get_rng_state(), state)


@needs_timm
def test_size_and_normalisation_follow_the_model_unless_the_run_sets_them() -> None:
    plain = discovery.get(parse_run({"task": {"classes": CLASSES, "model": "timm:convnext_atto"}})).preprocessing()
    assert plain["size"] == 224
    assert plain["mean"] == pytest.approx([0.485, 0.456, 0.406])
    own = {"classes": CLASSES, "model": "timm:convnext_atto", "size": 64, "mean": [0.1] * 3, "std": [0.2] * 3}
    found = discovery.get(parse_run({"task": own})).preprocessing()
    assert (found["size"], found["mean"], found["std"]) == (64, [0.1] * 3, [0.2] * 3)


@needs_timm
def test_unknown_models_are_refused_with_similar_names() -> None:
    with pytest.raises(ConfigError, match="no model called 'convnxt_atto'; similar names: convnext_atto"):
        discovery.get(config("timm:convnxt_atto"))


@needs_timm
def test_no_model_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append(k) or make(*a, **k))
    timm_models.build(CONVNEXT, 3, 32)
    assert [each["pretrained"] for each in asked] == [False]


@needs_timm
@pytest.mark.parametrize(
    ("model", "freeze"),
    [(CONVNEXT, ["stem", "stages.0", "stages.1", "stages.2"]), (RESNET, ["conv1", "bn1", "layer1", "layer2"])],
)
def test_own_weights_frozen_but_for_the_last_stage(tmp_path: Path, model: str, freeze: list[str]) -> None:
    """As in docs/images.md: the file has a classifier of another size; frozen statistics keep their bits too."""
    torch.manual_seed(9)
    made = timm.create_model(model.removeprefix("timm:"), num_classes=1000, in_chans=1)
    save_file({key: value.contiguous() for key, value in made.state_dict().items()}, tmp_path / "own.safetensors")
    run = config(model, task={"weights": str(tmp_path / "own.safetensors"), "freeze": freeze})
    before = FederatedRun(run, EventLog()).state.model
    given = made.state_dict()
    assert all(torch.equal(v, given[k.removeprefix("backbone.")]) for k, v in before.items() if "backbone" in k)
    result = in_one_process(run, clients(), app)
    fixed = {key for key in before if result.task.is_frozen(key)}
    assert fixed >= {key for key in before if key.startswith(f"backbone.{freeze[-1]}.")}
    assert {key for key, value in before.items() if torch.equal(value, result.state.model[key])} == fixed
    assert result.traffic.each_round < result.traffic.once
    write_files(tmp_path / "run", result, summary_of("x", result))
    assert load(tmp_path / "run")(torch.rand(2, 1, 32, 32)).shape == (2, 10)


@needs_timm
@pytest.mark.parametrize("model", [CONVNEXT, VIT])
def test_adapters_fit_models_of_timm(model: str) -> None:
    run = config(model, task={"adapter_rank": 2}, train={"lr": 0.01})
    before = FederatedRun(run, EventLog()).state.model
    result = in_one_process(run, clients(), app)
    moved = {key for key, value in before.items() if not torch.equal(value, result.state.model[key])}
    assert {key for key in moved if key.startswith("backbone.")} == {
        key for key in before if key.endswith(("up", "down"))
    }
    assert result.traffic.each_round < 0.6 * result.traffic.once


@needs_timm
def test_one_example_trains_a_model_with_batch_normalisation() -> None:
    task = discovery.get(config(RESNET))
    assert isinstance(task, ImageTask)
    data = task.load_train("digits", None, None)
    model, frame = task.new_model().train(), task.frame(0)
    from fednc.common.learning.class_memory import ClassMemory
    from fednc.common.tasks.round_guide import guide_at

    guide = guide_at(task, frame.etf_KD, ClassMemory.empty(10, 16), 1, count_K=data.count_K)
    loss, _ = task.loss(model, next(iter(data.eval_batches(1))), guide)
    assert loss.isfinite()


@needs_timm
def test_a_closed_form_run_with_a_model_of_timm() -> None:
    run = config(method={"name": "fedavg", "readout": "ridge"}, train={"epochs": 0})
    result = in_one_process(run, clients(), app)
    assert result.history.rounds[-1].test["accuracy"] > 0.5


@needs_timm
@pytest.mark.parametrize("model", [CONVNEXT, RESNET, "timm:mobilenetv3_small_050"])
def test_values_for_every_pixel_over_the_stages_of_a_model_of_timm(model: str) -> None:
    single = segmentation_task(model="deeplab", backbone=model)
    assert single.build_model().features(torch.randn(2, 3, 64, 80)).shape == (2, 64, 80, 8)
    several = multitask(backbone=model, size=[64, 80])
    assert outputs_of(several, model_of(several), torch.randn(2, 3, 64, 80)).shape == (2, 9, 64, 80)


@needs_timm
def test_a_model_of_timm_for_one_size_of_pictures_has_no_values_for_every_pixel() -> None:
    with pytest.raises(ConfigError, match=r"task\.backbone: timm cannot give the feature maps"):
        segmentation_task(model="deeplab", backbone="timm:swin_tiny_patch4_window7_224").build_model()
