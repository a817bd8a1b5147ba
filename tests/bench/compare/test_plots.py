"""The pictures: drawn for few and many classes, with the cosines of centred class means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from fednc.bench.compare.plots import cosines, curves, geometry, heat_maps
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


def test_curves_show_every_series(tmp_path: Path) -> None:
    def drawn(**series: list[tuple[int, float]]) -> bytes:
        curves(tmp_path / "curves.png", series)
        with Image.open(tmp_path / "curves.png") as image:
            return image.tobytes()

    fedavg, fednc = [(1, 0.4), (2, 0.5)], [(1, 0.6), (2, 0.7)]
    assert drawn(fedavg=fedavg) != drawn(fedavg=fedavg, fednc=fednc)


def test_heat_maps_have_a_panel_for_each_method_in_rows_of_four(tmp_path: Path) -> None:
    names, sizes = [f"class {c}" for c in range(6)], []
    for count in (1, 3, 4, 5):
        panels = {f"method {i}": torch.rand(6, 6, dtype=torch.float64) * 2 - 1 for i in range(count)}
        panels["method 0"][2] = torch.nan
        heat_maps(tmp_path / "maps.png", panels, names)
        with Image.open(tmp_path / "maps.png") as image:
            sizes.append(image.size)
    assert sizes[0][0] < sizes[1][0] < sizes[2][0]
    assert sizes[3][1] > 1.5 * sizes[2][1]
