"""Dense models and tiles: any size, any image backbone, and tiles that give what the whole picture gives."""

from __future__ import annotations

import itertools
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fednc.common.errors import ConfigError
from fednc.tasks.dense import models
from fednc.tasks.dense.models import UNet, at_size, feature_map
from fednc.tasks.dense.tiles import in_tiles, starts
from support.multitask_tasks import multitask
from support.segmentation_tasks import guide_of, segmentation_task


@pytest.mark.parametrize("size", [(17, 23), (8, 9), (40, 40), (31, 8)])
def test_sizes_need_not_divide(size: tuple[int, int]) -> None:
    assert UNet(3, 8)(torch.randn(2, 3, *size)).shape == (2, 8, *size)
    task = segmentation_task(model="deeplab", backbone="cnn")
    model = task.build_model().eval()
    assert model.features(torch.randn(2, 3, *size)).shape == (2, *size, 8)
    assert task.scores(model, torch.randn(1, 3, *size), guide_of(task)).shape == (1, 4, *size)


@pytest.mark.parametrize("backbone", ["cnn", "plain", "resnet18", "mobilenetv2"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_every_image_backbone_has_a_feature_map(backbone: str, norm: str) -> None:
    layers, channels = feature_map(backbone, norm, 3, 16)
    found = layers.eval()(torch.randn(1, 3, 33, 40))
    assert found.shape[1] == channels
    assert found.shape[2] > 1


def test_a_backbone_without_a_feature_map_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build_backbone", lambda _: (torch.nn.Linear(3, 3), 3))
    with pytest.raises(ConfigError, match="does not end by pooling"):
        feature_map("cnn", "group", 3, 16)


def test_predictions_are_resized_without_mixing_numbers_and_without_nan() -> None:
    score = torch.randn(2, 3, 8, 9)
    score[:, 1] = -torch.inf  # a class without a score yet
    large = at_size(score, (31, 20))
    assert large.shape == (2, 3, 31, 20)
    assert bool(large.isfinite().all())
    assert not bool((large.argmax(dim=1) == 1).any())
    numbers = torch.randint(0, 1000, (2, 3, 8, 9)) * 7
    assert set(at_size(numbers, (31, 20)).unique().tolist()) == set(numbers.unique().tolist())
    assert torch.equal(at_size(numbers, (8, 9)), numbers)


# ---- models of timm; tests/tasks/vision/test_timm_models.py has real ones


class Net(torch.nn.Module):
    """Three stages as timm gives them with `features_only`, the last one with its channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels, 8, 16, 24]
        self.stages = torch.nn.ModuleList([torch.nn.Conv2d(a, b, 3, 2, 1) for a, b in itertools.pairwise(widths)])
        self.feature_info = SimpleNamespace(reduction=lambda: [2, 4, 8], channels=lambda: widths[1:])

    def forward(self, pixel_BCHW: torch.Tensor) -> list[torch.Tensor]:
        found = [pixel_BCHW]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return [*found[1:-1], found[-1].permute(0, 2, 3, 1)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for timm, and the settings of the models that were asked of it."""
    settings: list[dict[str, Any]] = []

    def create_model(name: str, **given: Any) -> Net:
        settings.append(given)
        if name == "plain" or not given.get("features_only"):
            raise RuntimeError("features_only is not implemented")
        return Net(given["in_chans"])

    module = ModuleType("timm")
    inputs = SimpleNamespace(input_size=(3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
    for key, value in {
        "create_model": create_model,
        "is_model": lambda name: name in ("net", "plain"),
        "list_models": lambda: ["net", "plain"],
        "get_pretrained_cfg": lambda _: inputs,
        "__version__": "1.0",
    }.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, "timm", module)
    return settings


def test_a_class_per_pixel_over_the_last_stage_of_a_model_of_timm(asked: list[dict[str, Any]]) -> None:
    task = segmentation_task(model="deeplab", backbone="timm:net")
    model = task.build_model()
    assert model.features(torch.randn(2, 3, 33, 40)).shape == (2, 33, 40, 8)
    assert feature_map("timm:net", "group", 3, 16)[1] == 24
    assert model.training
    assert all(each["features_only"] and not each["pretrained"] for each in asked)
    keys = {key for key in task.shared_keys(model) if key.startswith("backbone.0.")}
    assert len(keys) == 6  # weights and biases of three stages travel


@pytest.mark.parametrize(("stride", "channels"), [(2, 48), (4, 40), (8, 24)])
def test_several_tasks_join_the_stages_that_are_small_enough(
    asked: list[dict[str, Any]], stride: int, channels: int
) -> None:
    backbone, given = multitask(backbone="timm:net", stride=stride).backbone()
    maps = backbone(torch.randn(1, 3, 32, 32))
    assert sum(each.shape[1] for each in maps) == given == channels
    assert maps[0].shape[2] == 32 // stride


@pytest.mark.parametrize(("name", "told"), [("plain", "features_only is not"), ("nett", "similar names: net")])
def test_models_of_timm_without_stages_are_refused(asked: list[dict[str, Any]], name: str, told: str) -> None:
    for task in (segmentation_task(model="deeplab", backbone=f"timm:{name}"), multitask(backbone=f"timm:{name}")):
        with pytest.raises(ConfigError, match=told):
            task.backbone()


@pytest.mark.parametrize(("length", "tile", "overlap"), [(100, 32, 8), (33, 32, 8), (32, 32, 31), (65, 32, 0)])
def test_tiles_cover_everything_and_overlap(length: int, tile: int, overlap: int) -> None:
    found = starts(length, tile, overlap)
    assert found[0] == 0
    assert found[-1] == length - tile
    assert all(b - a <= tile - overlap for a, b in itertools.pairwise(found))


def test_tiles_give_the_whole_where_what_they_see_suffices() -> None:
    pixel = torch.randn(2, 3, 50, 37)

    def pointwise(x: torch.Tensor) -> torch.Tensor:
        return x[:, :2] * 3 + 1

    torch.testing.assert_close(in_tiles(pointwise, pixel, 16, 4), pointwise(pixel))
    assert torch.equal(in_tiles(pointwise, pixel, 64, 4), pointwise(pixel))
    weight = torch.randn(2, 3, 3, 3)

    def blurred(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, padding=1)

    whole, tiled = blurred(pixel), in_tiles(blurred, pixel, 24, 12)
    assert (whole - tiled).abs().mean() < 0.1 * whole.abs().mean()


def test_the_task_predicts_large_pictures_in_tiles() -> None:
    plain, tiled = segmentation_task(), segmentation_task(tile=24, overlap=8)
    model, pixel = plain.build_model().eval(), torch.randn(1, 3, 40, 57)
    scores = tiled.scores(model, pixel, guide_of(tiled))
    assert scores.shape == (1, 4, 40, 57)
    assert not torch.equal(scores, plain.scores(model, pixel, guide_of(plain)))
    small = torch.randn(1, 3, 20, 24)
    assert torch.equal(tiled.scores(model, small, guide_of(tiled)), plain.scores(model, small, guide_of(plain)))
