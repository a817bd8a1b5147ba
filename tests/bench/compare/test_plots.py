"""The pictures: what they say can be read, and lies inside the picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fednc.bench.compare import heat_maps, plots
from fednc.bench.compare.plots import bands, bars, curves, differences, dots
from fednc.bench.compare.styles import styles

LONG = "Shapes (12,000 images), 10 clients, 40 rounds: Dirichlet 0.05, two of ten clients in each round"
NAMES = ["fednc", *(f"fednc+a-rather-long-name-{place}" for place in range(8))]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, in order."""
    found: list[Figure] = []

    def record(size_inch: tuple[float, float]) -> Figure:
        found.append(new(size_inch))
        return found[-1]

    new = plots.new_figure
    for module in (plots, heat_maps):
        monkeypatch.setattr(module, "new_figure", record)
    return found


def lines(**values: list[float]) -> dict[str, list[list[tuple[int, float]]]]:
    """One seed each, from round 1."""
    return {name: [[*enumerate(found, start=1)]] for name, found in values.items()}


def texts(figure: Figure) -> list[Text]:
    """All texts but the numbers of the axes, of which some lie outside and are not drawn; laid out."""
    FigureCanvasAgg(figure).draw()
    return [
        text
        for text in figure.findobj(Text)
        if re.search(r"[a-z]|[.]\d$", text.get_text()) and text not in numbers(figure)
    ]


def numbers(figure: Figure) -> list[Text]:
    return [
        text
        for axes in figure.axes
        for text in axes.get_xticklabels() + axes.get_yticklabels()
        if re.fullmatch(r"[−\d.]*", text.get_text())
    ]


DRAWN: list[Callable[[Path], None]] = [
    lambda path: curves(path, {name: [(1, 0.5), (2, 0.7)] for name in NAMES[:2]}),
    lambda path: bands(
        path, {"test accuracy over all classes so far (%)": lines(fednc=[1.0, 2.0])}, styles(NAMES)
    ),
    lambda path: bands(
        path, {f"panel {n}": lines(**{name: [1.0, 2.0] for name in NAMES}) for n in range(5)}, styles(NAMES)
    ),
    lambda path: dots(
        path, {name: {"a hospital": 1.0, "another one": 2.0} for name in NAMES}, "test accuracy (%)"
    ),
    lambda path: differences(
        path, {LONG: [1.0, 2.0], f"{LONG}, memory of all": [60.0]}, "gain in points", least=0.5
    ),
    lambda path: differences(path, {LONG: [-1.0, -2.0]}, "gain in points, a dot per seed", least=0.5),
    lambda path: bars(
        path, {"fednc": [3, None], NAMES[1]: [None]}, "rounds to the best of all others", styles(NAMES)
    ),
]


@pytest.mark.parametrize("draw", DRAWN)
def test_every_text_lies_inside_the_picture(
    tmp_path: Path, figures: list[Figure], draw: Callable[[Path], None]
) -> None:
    draw(tmp_path / "picture.png")
    (figure,) = figures
    for text in texts(figure):
        box = text.get_window_extent()
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text


@pytest.mark.parametrize("draw", DRAWN[4:])
def test_data_has_about_half_of_the_width_and_numbers_are_clear_of_it(
    tmp_path: Path, figures: list[Figure], draw: Callable[[Path], None]
) -> None:
    draw(tmp_path / "picture.png")
    (figure,) = figures
    axes = figure.axes[0]
    beside = [text for text in texts(figure) if text in axes.texts]
    assert beside
    assert axes.bbox.width > 0.45 * figure.bbox.width
    assert all(text.get_window_extent().x0 > axes.bbox.x1 for text in beside)


def test_what_all_rows_share_is_said_once(tmp_path: Path, figures: list[Figure]) -> None:
    differences(
        tmp_path / "d.png", {"Shapes, 9 images: all": [1.0], "Shapes, 9 images: half": [2.0]}, "x", least=1
    )
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all", "half"]
    assert axes.get_title(loc="left") == "Shapes, 9 images"


def test_five_panels_have_two_rows_and_the_legend_in_the_sixth_place(
    tmp_path: Path, figures: list[Figure]
) -> None:
    bands(tmp_path / "b.png", {f"NC{n}": lines(fednc=[1.0, 2.0]) for n in range(5)}, styles(NAMES))
    assert [axes.get_legend() is not None for axes in figures[0].axes] == [False] * 5 + [True]
    assert len({round(axes.get_position().y0, 2) for axes in figures[0].axes[:5]}) == 2


def test_the_legend_lists_only_what_is_drawn(tmp_path: Path, figures: list[Figure]) -> None:
    series = {**lines(fednc=[1.0, 2.0], fedavg=[1.0, 1.5]), "alone": [[]]}
    bands(tmp_path / "b.png", {"a": series, "empty": {"fednc": [[]]}}, styles(series))
    (figure,) = figures
    assert len(figure.axes) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fednc", "fedavg"]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0, 2.0, 8e5], "log"),
        ([0.0, 1.0, 8e5], "symlog"),
        ([1.0, 2.0, 800.0], "linear"),
        ([-1.0, 1.0], "linear"),
    ],
)
def test_values_over_decades_have_a_logarithmic_axis(
    tmp_path: Path, figures: list[Figure], values: list[float], scale: str
) -> None:
    bands(tmp_path / "b.png", {"NC1": lines(fednc=values)}, styles(NAMES))
    assert figures[0].axes[0].get_yscale() == scale


@pytest.mark.parametrize(
    ("apart", "side"), [([2.0, 2.0, 2.13], "2.13, below"), ([900.0, 950.0, 999.0], "999, above")]
)
def test_a_line_far_from_all_others_leaves_them_the_axis_and_is_named(
    tmp_path: Path, figures: list[Figure], apart: list[float], side: str
) -> None:
    others = {f"v{n}": [80.0 + n, 81.0 + n, 82.0 + n] for n in range(5)}
    series = lines(**others, control=apart)
    bands(tmp_path / "b.png", {"test accuracy (%)": series}, styles(series))
    axes = figures[0].axes[0]
    low, high = axes.get_ylim()
    assert 75 < low < 80
    assert 86 < high < 90
    assert axes.get_title(loc="left") == f"control: {side}"
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == list(others)


@pytest.mark.parametrize("end", [82.0, 78.0, 70.0])
def test_lines_that_only_begin_far_off_are_shown_whole(tmp_path: Path, figures: list[Figure], end: float) -> None:
    series = lines(**{f"v{n}": [80.0 + n, 81.0 + n] for n in range(5)}, learns=[2.0, end])
    bands(tmp_path / "b.png", {"test accuracy (%)": series}, styles(series))
    assert figures[0].axes[0].get_ylim()[0] < 2


def test_nothing_is_drawn_that_says_nothing_and_an_earlier_picture_goes(tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    for draw in (
        lambda: bars(path, {"fednc": [22, 22], "fedavg": [22, 22]}, "rounds", styles(NAMES)),
        lambda: bands(path, {"NC1": {"fednc": [[]]}}, styles(NAMES)),
    ):
        path.write_bytes(b"an earlier picture")
        draw()
        assert not path.exists()


def test_bars_and_bands_are_drawn_for_missing_values_too(tmp_path: Path) -> None:
    looks = styles(["a", "b"])
    bars(tmp_path / "bars.png", {"a": [3, None], "b": [None, None]}, "rounds", looks)
    bands(tmp_path / "bands.png", {"x": {"a": [[(1, 0.5)], [(1, 0.6), (2, 0.7)]], "b": [[]]}}, looks)
    for name in ("bars", "bands"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 3


def test_curves_show_every_series(tmp_path: Path, figures: list[Figure]) -> None:
    curves(tmp_path / "c.png", {"fedavg": [(1, 0.4), (2, 0.5)], "fednc": [(1, 0.6), (2, 0.7)]})
    drawn: list[Any] = [line.get_ydata() for line in figures[0].axes[0].lines]
    assert [[round(value) for value in one] for one in drawn] == [[40, 50], [60, 70]]


@pytest.mark.parametrize("count", [3, 12, 40])
def test_all_variants_can_be_told_apart(count: int) -> None:
    found = styles(["fedavg", "fednc", *(f"v{n}" for n in range(count))])
    assert len(set(found.values())) == len(found)
    others = {look.colour for name, look in found.items() if name.startswith("v")}
    assert not others & {found["fednc"].colour, found["fedavg"].colour}
    assert len(others) == min(count, 9)


def test_fednc_and_fedavg_look_the_same_in_all_comparisons() -> None:
    one, other = styles(["fedavg", "a", "fednc"]), styles(["b", "c", "fednc", "d", "fedavg"])
    assert (one["fednc"], one["fedavg"]) == (other["fednc"], other["fedavg"])
