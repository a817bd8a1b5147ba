"""Dense models and tiles: any size, any image backbone, and tiles that give what the whole picture gives."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from fednc.common.errors import ConfigError
from fednc.tasks.dense import models
from fednc.tasks.dense.models import UNet, feature_map
from fednc.tasks.dense.tiles import in_tiles, starts
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
