"""Heat maps: the cosines of centred class means, and panels that can be read each by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from fednc.bench.compare import heat_maps as module
from fednc.bench.compare.heat_maps import cosines, geometry, heat_maps
from fednc.common.learning.frame import draw_frame


@pytest.mark.parametrize("classes", [2, 10, 20])
def test_frame_has_equal_angles_and_a_common_shift_is_removed(classes: int) -> None:
    frame_KD = draw_frame(classes, 32, seed=3).etf_KD
    cos_KK = cosines(frame_KD + torch.randn(32))
    target_KK = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(cos_KK, target_KK, atol=1e-5, rtol=0)


def test_a_class_without_a_mean_is_blank_and_does_not_move_the_centre() -> None:
    mean_KD = torch.randn(5, 8)
    with_gap_KD = torch.cat([mean_KD, torch.zeros(1, 8)])
    cos_KK = cosines(with_gap_KD)
    assert cos_KK[5].isnan().all()
    assert cos_KK[:, 5].isnan().all()
    torch.testing.assert_close(cos_KK[:5, :5], cosines(mean_KD))


@pytest.mark.parametrize("classes", [2, 20])
def test_pictures_are_drawn_and_grow_with_their_content(tmp_path: Path, classes: int) -> None:
    frame_KD = draw_frame(classes, 32, seed=0).etf_KD
    names = [f"a class with a rather long name {c}" for c in range(classes)]
    geometry(tmp_path / "one.png", {"fednc": frame_KD}, frame_KD, names)
    geometry(tmp_path / "two.png", {"fedavg": torch.randn(classes, 9), "fednc": frame_KD}, frame_KD, names)
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert one.width < two.width


@pytest.mark.parametrize("count", [1, 3, 4, 7])
@pytest.mark.parametrize("classes", [2, 10, 12, 60])
def test_every_panel_has_its_classes_and_numbers_are_in_all_or_in_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, classes: int
) -> None:
    figures: list[Figure] = []
    new = module.new_figure
    monkeypatch.setattr(module, "new_figure", lambda size: figures.append(new(size)) or figures[-1])
    # Some heads have room for classes that never came.
    panels = {f"method {i}": torch.rand(classes + i, classes + i, dtype=torch.float64) for i in range(count)}
    heat_maps(tmp_path / "maps.png", panels, [f"class {c}" for c in range(classes)])
    drawn = [axes for axes in figures[0].axes if axes.images]
    assert len(drawn) == count
    assert len(figures[0].axes) == count + 1, "panels and the colour bar"
    assert {image.get_array().shape for axes in drawn for image in axes.images} == {(classes, classes)}
    assert {len(axes.texts) for axes in drawn} == {classes**2 if classes <= 10 else 0}
    for axes in drawn:
        assert axes.get_xticklabels()[0].get_text() == "1"
        assert axes.get_yticklabels()[0].get_text() in ("1", "class 0  1")
        assert len(axes.get_xticks()) <= 25
    firsts = {axes.get_yticklabels()[0].get_text() for axes in drawn[::3]}
    assert firsts == {"class 0  1"}, "each row of panels begins with the names"
