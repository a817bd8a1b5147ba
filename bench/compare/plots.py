"""Pictures of lines and of rows: a metric per round, rounds to a target, differences, values of each client.

Called with plain numbers at the end of a demo or a comparison; knows no run, no folder layout, no task. Imports
matplotlib (extra `demo`) only to draw. `heat_maps.py` has the pictures of cosines.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fednc.bench.compare.styles import COLOURS, MARKERS, Look, styles
from fednc.common.errors import MissingExtraError
from fednc.common.tasks.metric_info import ACCURACY, PERCENT, MetricInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]  # (round, value)
_DOT = "#0072B2"
_LETTERS = 30  # of a row's label or an entry of a legend in one line
_COLUMNS = 3  # panels side by side
_LOG_RATIO = 1000  # values that span more get a logarithmic axis
_MANY = 6  # lines; the bands of more would hide them
_APART = 4  # at most one line in so many is left outside an axis; the others had less than this part of it


def curves(path: Path, series: Mapping[str, Points], metric: MetricInfo = ACCURACY) -> None:
    """Draw a metric on test data per round, one line per method.

    Args:
        path: file to write.
        series: for each method its (round, value) points in order, at least one; shares as 0 ... 1.
        metric: what the values are.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure((7.2, 4.4))
    axes = figure.subplots()
    looks = styles(series)
    for name, points in series.items():
        _draw_curve(axes, looks[name], name, points, metric)
    _finish(axes, "round", metric_label(metric))
    axes.legend(loc="best", frameon=False)
    save(figure, path)


def bands(
    path: Path,
    panels: Mapping[str, Mapping[str, Sequence[Points]]],
    looks: Mapping[str, Look],
    across: str = "round",
) -> None:
    """Draw panels with one line per name: the mean of its curves, in a band from the lowest to the highest.

    An axis is logarithmic if its values span more than three decades. A few lines that lie apart and would squeeze
    the others are left outside; the panel says where they are. Panels and names without a point are left out; if
    there is none, nothing is drawn, and an earlier picture is deleted.

    Args:
        path: PNG file to write.
        panels: label of the vertical axis -> name -> (round, value) points of each seed.
        looks: style of each name.
        across: label of the horizontal axis.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    shown = {label: found for label, series in panels.items() if (found := _with_points(series))}
    if not shown:
        path.unlink(missing_ok=True)
        return
    names = dict.fromkeys(name for series in shown.values() for name in series)
    figure, grid = _grid(len(shown), len(names))
    entries: dict[str, Any] = {}
    for axes, (label, lines) in zip(grid, shown.items(), strict=False):
        entries |= _draw_panel(axes, lines, looks)
        _finish(axes, across, wrapped(label))
    _legend(figure, grid[len(shown) :], {name: entries[name] for name in names if name in entries})
    save(figure, path)


def dots(path: Path, series: Mapping[str, Mapping[str, float]], label: str) -> None:
    """Draw one line per name with a dot for each of its members, and a stroke at their mean.

    Args:
        path: PNG file to write.
        series: name -> value of each member. A name without members is left out.
        label: label of the horizontal axis.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    shown = {name: values for name, values in series.items() if values}
    members = list(dict.fromkeys(member for values in shown.values() for member in values))
    figure, axes = _rows(list(shown), f"{label}, of each client; the stroke is their mean")
    are_few = len(members) <= len(MARKERS)
    entries = {}
    for place, values in enumerate(shown.values()):
        for member, value in values.items():
            which = members.index(member) if are_few else 0
            colour, alpha = (COLOURS[which], 0.8) if are_few else (_DOT, 0.4)
            (entries[member],) = axes.plot(value, place, MARKERS[which], color=colour, alpha=alpha)
        axes.plot(sum(values.values()) / len(values), place, "k|", markersize=16, markeredgewidth=2)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    if are_few:
        _legend(figure, [], {member: entries[member] for member in members})
    save(figure, path)


def differences(path: Path, series: Mapping[str, Sequence[float]], label: str, *, least: float) -> None:
    """Draw one line per name with a dot for each of its differences, and a stroke at their mean with its value.

    What all names begin with, up to a colon or a comma, stands above the picture instead.

    Args:
        path: PNG file to write.
        series: name -> differences, at least one.
        label: label of the horizontal axis.
        least: differences from `-least` to `least` are shaded: they do not count.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    shared = _shared_start(list(series))
    names = [name.removeprefix(shared) for name in series]
    figure, axes = _rows(names, f"{label}; shaded: at most ±{least:g}")
    axes.axvspan(-least, least, facecolor="#d9d9d9", edgecolor="#b0b0b0", linewidth=1)  # its edge is always seen
    axes.axvline(0, color="black", linewidth=0.8)
    means = [sum(values) / len(values) for values in series.values()]
    for place, (values, mean) in enumerate(zip(series.values(), means, strict=True)):
        axes.plot(values, [place] * len(values), "o", color=_DOT, alpha=0.6)
        axes.plot(mean, place, "k|", markersize=16, markeredgewidth=2)
    _write_beside(axes, [f"{mean:+.1f}" for mean in means])
    axes.margins(x=0.06)
    axes.set_title(wrapped(shared.rstrip(" :,"), 2 * _LETTERS), loc="left", fontsize=10)
    save(figure, path)


def bars(path: Path, rounds: Mapping[str, Sequence[int | None]], label: str, looks: Mapping[str, Look]) -> None:
    """Draw one bar per name, the mean of its values, and a dot for each; text counts those that are None.

    Bars that are all equal say nothing: then nothing is drawn, and an earlier picture is deleted.

    Args:
        path: PNG file to write.
        rounds: name -> value of each seed.
        label: label of the horizontal axis.
        looks: style of each name.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    reached = {name: [value for value in values if value is not None] for name, values in rounds.items()}
    means = {name: sum(values) / len(values) if values else 0.0 for name, values in reached.items()}
    missing = {name: len(values) - len(reached[name]) for name, values in rounds.items()}
    if len({(means[name], missing[name]) for name in rounds}) < 2:
        path.unlink(missing_ok=True)
        return
    figure, axes = _rows(list(rounds), label)
    for place, (name, mean) in enumerate(means.items()):
        axes.barh(place, mean, color=looks[name].colour, alpha=0.6)
        axes.plot(reached[name], [place] * len(reached[name]), "k.", markersize=5)
    counts = [(missing[name], len(values)) for name, values in rounds.items()]
    _write_beside(axes, [f"not reached: {count} of {of}" if count else "" for count, of in counts])
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", integer=True)
    save(figure, path)


def save(figure: Figure, path: Path, *, dpi: int = 150, **more: Any) -> None:
    """Write a PNG file of at most 256 colours. It is a third as large, and nobody sees the difference.

    Args:
        figure: what was drawn.
        path: the file.
        dpi: dots per inch.
        more: see `matplotlib.figure.Figure.savefig`.
    """
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, **more)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def new_figure(size_inch: tuple[float, float]) -> Figure:
    """An empty figure. Raises MissingExtraError: matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise MissingExtraError("matplotlib", "demo", "drawing pictures") from e
    # A bare Figure draws with Agg: no display, no global pyplot state.
    return Figure(figsize=size_inch, layout="constrained")


def metric_label(metric: MetricInfo, more: str = "") -> str:
    """The label of an axis for the metric on test data: `test accuracy (%)`."""
    return f"test {metric.name.replace('_', ' ')}{more}" + (f" ({metric.unit})" if metric.unit else "")


def wrapped(text: str, letters: int = _LETTERS) -> str:
    """The text in lines of at most so many letters; a longer word is left whole."""
    return textwrap.fill(text, letters, break_long_words=False, break_on_hyphens=False)


# ---- lines ---------------------------------------------------------------------------------------------------


def _draw_curve(axes: Any, look: Look, name: str, points: Points, metric: MetricInfo) -> None:
    scale = 100 if metric.unit == PERCENT else 1
    last = f"{100 * points[-1][1]:.1f} %" if metric.unit == PERCENT else metric.show(points[-1][1])
    numbers, values = [number for number, _ in points], [scale * value for _, value in points]
    _draw_line(axes, look, numbers, values, f"{name}, last {last}")


def _draw_line(axes: Any, look: Look, numbers: Sequence[int], values: Sequence[float], label: str) -> Any:
    (line,) = axes.plot(
        numbers,
        values,
        label=label,
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker,
        markersize=4,
        markevery=max(1, len(numbers) // 8),
        linewidth=1.6,
    )
    return line


class _Line:
    """The mean of the curves of several seeds, with the lowest and the highest, at each round that has one."""

    def __init__(self, found: Sequence[Points]) -> None:
        by_round: dict[int, list[float]] = {}
        for number, value in (point for points in found for point in points):
            if math.isfinite(value):
                by_round.setdefault(number, []).append(value)
        self.numbers = sorted(by_round)
        values = [by_round[number] for number in self.numbers]
        self.means = [sum(one) / len(one) for one in values]
        self.lows, self.highs = [*map(min, values)], [*map(max, values)]

    @property
    def tail(self) -> list[float]:
        """The means of the second half."""
        return self.means[len(self.means) // 2 :]


def _with_points(series: Mapping[str, Sequence[Points]]) -> dict[str, _Line]:
    lines = {name: _Line(found) for name, found in series.items()}
    return {name: line for name, line in lines.items() if line.numbers}


def _draw_panel(axes: Any, lines: Mapping[str, _Line], looks: Mapping[str, Look]) -> dict[str, Any]:
    """Draw the lines of a panel. Returns an entry of the legend for each that can be seen."""
    alpha = 0.15 if len(lines) <= _MANY else 0.07
    drawn = {}
    for name, line in lines.items():
        drawn[name] = _draw_line(axes, looks[name], line.numbers, line.means, name)
        axes.fill_between(line.numbers, line.lows, line.highs, color=looks[name].colour, alpha=alpha, linewidth=0)
    values = [value for line in lines.values() for value in line.means]
    if _spans_decades(values):
        _make_logarithmic(axes, values)
        return drawn
    shown = _together(lines)
    if len(shown) < len(lines):
        low = min(min(lines[name].lows) for name in shown)
        high = max(max(lines[name].highs) for name in shown)
        room = 0.05 * (high - low)
        axes.set_ylim(low - room, high + room)
        ends = {name: line.means[-1] for name, line in lines.items() if not low <= line.means[-1] <= high}
        outside = [f"{name}: {end:.3g}, {'below' if end < low else 'above'}" for name, end in ends.items()]
        axes.set_title("\n".join(outside), loc="left", fontsize=8)
        seen = {name for name, line in lines.items() if any(low <= value <= high for value in line.means)}
        drawn = {name: entry for name, entry in drawn.items() if name in seen}
    return drawn


def _spans_decades(values: Sequence[float]) -> bool:
    """Whether nine tenths of the positive values do; a single tiny one says nothing."""
    above = [value for value in values if value > 0]
    if len(above) < 2 or min(values) < 0:
        return False
    return max(above) > _LOG_RATIO * sorted(above)[len(above) // 10]


def _make_logarithmic(axes: Any, values: Sequence[float]) -> None:
    if min(values) > 0:
        axes.set_yscale("log")
        return
    least = 10.0 ** math.floor(math.log10(min(value for value in values if value > 0)))
    decades = math.log10(max(values) / least)
    axes.set_yscale("symlog", linthresh=least, linscale=decades / 10)  # room for 0 below the least
    axes.set_ylim(bottom=-least / 4)


def _together(lines: Mapping[str, _Line]) -> list[str]:
    """All lines; or without the few that end far below or above all others."""
    order = sorted(lines, key=lambda name: lines[name].means[-1])
    most = len(order) // _APART
    for below, above in sorted(product(range(most + 1), repeat=2), key=sum):
        kept = order[below : len(order) - above]
        others = [lines[name] for name in lines if name not in kept]
        if below + above <= most and others and _squeeze(others, [lines[name] for name in kept]):
            return kept
    return order


def _squeeze(others: Sequence[_Line], kept: Sequence[_Line]) -> bool:
    """Whether these had less than a quarter of an axis that reaches to the second half of any of the others."""
    low, high = min(min(line.means) for line in kept), max(max(line.means) for line in kept)
    reach = min(max(high - max(line.tail), min(line.tail) - low) for line in others)
    return reach > _APART * (high - low) > 0


def _grid(panels: int, entries: int) -> tuple[Figure, list[Any]]:
    """A figure with so many panels and, if they need several rows, a cell for the legend behind them."""
    if panels < _COLUMNS:
        figure = new_figure((7.0 + 1.4 * panels, 4.4))
        return figure, list(figure.subplots(1, panels, squeeze=False)[0])
    rows = panels // _COLUMNS + 1
    figure = new_figure((3.2 * _COLUMNS, max(2.9, 0.4 + 0.2 * entries) * rows))
    return figure, [figure.add_subplot(rows, _COLUMNS, place + 1) for place in range(panels + 1)]


def _legend(figure: Figure, cells: Sequence[Any], entries: Mapping[str, Any]) -> None:
    """A legend in the first of the cells, or to the right of all panels."""
    handles, labels = list(entries.values()), [wrapped(name) for name in entries]
    if not cells:
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        return
    cells[0].axis("off")
    cells[0].legend(handles, labels, loc="center", frameon=False, fontsize=9)


def _finish(axes: Any, across: str, label: str) -> None:
    axes.set(xlabel=across, ylabel=label)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


# ---- rows ----------------------------------------------------------------------------------------------------


def _rows(names: Sequence[str], label: str) -> tuple[Figure, Any]:
    """A figure with one row per name, from the top."""
    labels = [wrapped(name) for name in names]
    row_inch = max(0.4, 0.15 + 0.17 * max((text.count("\n") + 1 for text in labels), default=1))
    figure = new_figure((7.2, 1.3 + row_inch * len(names)))
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(wrapped(label, 2 * _LETTERS))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _write_beside(axes: Any, texts: Sequence[str]) -> None:
    """A text for each row, to the right of the axes: clear of marks and lines."""
    for place, text in enumerate(texts):
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center")


def _shared_start(names: Sequence[str]) -> str:
    """What several names begin with, up to the last colon or comma; the names differ behind it."""
    starts = [names[0][: found.end()] for found in re.finditer(r"[:,] ", names[0])] if len(names) > 1 else []
    return max((one for one in starts if all(name.startswith(one) for name in names)), key=len, default="")
