"""Pictures: a metric per round, rounds to a target, and the geometry of class means next to that of the frame.

Called with plain numbers at the end of a demo or a comparison; knows no run, no folder layout, no task. Imports
matplotlib (extra `demo`) only to draw.

Legend: K classes shown, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fednc.common.errors import MissingExtraError
from fednc.common.tasks.metric_info import ACCURACY, PERCENT, MetricInfo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette and a grey, which people with any common colour blindness can tell apart. Line style and
# marker differ too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_Dash = str | tuple[int, tuple[float, ...]]
_DASHES: tuple[_Dash, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
_MAX_ANNOTATED = 10  # classes; with more the numbers would be too small to read
_MAX_COLUMNS = 4  # heat maps side by side
_MAX_LETTERS = 18  # of a class name on an axis


def curves(path: Path, series: Mapping[str, Sequence[tuple[int, float]]], metric: MetricInfo = ACCURACY) -> None:
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
    for place, (name, points) in enumerate(series.items()):
        _draw_curve(axes, place, name, points, metric)
    axes.set(xlabel="round", ylabel=metric_label(metric))
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=False)
    figure.savefig(path, dpi=150)


def bands(
    path: Path, panels: Mapping[str, Mapping[str, Sequence[Sequence[tuple[int, float]]]]], across: str = "round"
) -> None:
    """Draw panels with one line per name: the mean of its curves, in a band from the lowest to the highest.

    Args:
        path: PNG file to write.
        panels: label of the vertical axis -> name -> (round, value) points of each seed.
        across: label of the horizontal axis.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure((7.2, 4.4) if len(panels) == 1 else (4.2 * len(panels), 4.0))
    for axes, (label, series) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for place, (name, curves_) in enumerate(series.items()):
            _draw_band(axes, place, name, curves_)
        axes.set(xlabel=across, ylabel=label)
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)


def dots(path: Path, series: Mapping[str, Mapping[str, float]], label: str) -> None:
    """Draw one line per name with a dot for each of its members, and a stroke at their mean.

    Args:
        path: PNG file to write.
        series: name -> value of each member.
        label: label of the horizontal axis.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    members = list(dict.fromkeys(member for values in series.values() for member in values))
    figure = new_figure((7.2, 1.4 + 0.4 * len(series)))
    axes = figure.subplots()
    are_few = len(members) <= len(_MARKERS)
    for place, values in enumerate(series.values()):
        for member, value in values.items():
            which = members.index(member)
            marker, colour = (_MARKERS[which], _COLOURS[which]) if are_few else ("o", _COLOURS[0])
            named = member if are_few and place == 0 else None
            axes.plot(value, place, marker, color=colour, alpha=0.8 if are_few else 0.4, label=named)
        if values:
            axes.plot(sum(values.values()) / len(values), place, "k|", markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(series)), list(series))
    axes.invert_yaxis()
    axes.set_xlabel(f"{label}, of each client; the stroke is their mean")
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if are_few:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)


def differences(path: Path, series: Mapping[str, Sequence[float]], label: str, *, least: float) -> None:
    """Draw one line per name with a dot for each of its differences, and a stroke at their mean with its value.

    Args:
        path: PNG file to write.
        series: name -> differences, at least one.
        label: label of the horizontal axis.
        least: differences from `-least` to `least` are shaded: they do not count.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure((7.2, 1.2 + 0.4 * len(series)))
    axes = figure.subplots()
    axes.axvspan(-least, least, color="#dddddd", linewidth=0)
    axes.axvline(0, color="black", linewidth=0.8)
    for place, values in enumerate(series.values()):
        mean = sum(values) / len(values)
        axes.plot(values, [place] * len(values), "o", color=_COLOURS[0], alpha=0.6)
        axes.plot(mean, place, "k|", markersize=16, markeredgewidth=2)
        axes.annotate(f"{mean:+.1f}", (mean, place), (0, 9), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(series)), list(series))
    axes.set_ylim(len(series) - 0.5, -0.7)
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def bars(path: Path, rounds: Mapping[str, Sequence[int | None]], label: str) -> None:
    """Draw one bar per name, the mean of its values, and a dot for each value; a label counts those that are None.

    Args:
        path: PNG file to write.
        rounds: name -> value of each seed.
        label: label of the horizontal axis.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure((7.2, 1.2 + 0.4 * len(rounds)))
    axes = figure.subplots()
    for place, values in enumerate(rounds.values()):
        reached = [value for value in values if value is not None]
        mean = sum(reached) / len(reached) if reached else 0.0
        axes.barh(place, mean, color=_COLOURS[place % len(_COLOURS)], alpha=0.6)
        axes.plot(reached, [place] * len(reached), "k.", markersize=5)
        if len(reached) < len(values):
            axes.text(mean, place, f"  not reached: {len(values) - len(reached)} of {len(values)}", va="center")
    axes.set_yticks(range(len(rounds)), list(rounds))
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def geometry(path: Path, means: Mapping[str, Tensor], etf_KD: Tensor, class_names: Sequence[str]) -> None:
    """Draw cosines between centred class means, one heat map per method and one for the frame.

    Means are centred because neural collapse (NC2) is defined on centred means; so is the frame. A class without a
    mean (a zero row) is left blank. Only the first len(class_names) rows are shown.

    Args:
        path: PNG file to write.
        means: for each method its class means [K or more, D].
        etf_KD: the frame.
        class_names: names of the classes so far.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    panels = {name: cosines(mean_KD[: len(class_names)]) for name, mean_KD in means.items()}
    target_KK = cosines(etf_KD[: len(class_names)])
    labels = [name if len(name) <= _MAX_LETTERS else f"{name[: _MAX_LETTERS - 1]}…" for name in class_names]
    margin_inch = 0.09 * max(map(len, labels))
    figure = new_figure((1.0 + margin_inch + 3.7 * (len(panels) + 1), 4.3 + margin_inch))
    row = figure.subplots(1, len(panels) + 1, sharey=True, squeeze=False)[0]
    for axes, (name, cos_KK) in zip(row[:-1], panels.items(), strict=True):
        _draw_heat_map(axes, cos_KK, f"{name}\nmean distance to frame {_distance(cos_KK, target_KK):.2f}")
    image = _draw_heat_map(row[-1], target_KK, f"frame\nall pairs {_off_diagonal(target_KK).mean():.2f}")
    for axes in row:
        _name_classes(axes, labels)
    figure.colorbar(image, ax=list(row), label="cosine between centred class means", shrink=0.8, pad=0.01)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def heat_maps(path: Path, panels: Mapping[str, Tensor], class_names: Sequence[str]) -> None:
    """Draw cosines of class means with class vectors, one heat map per method; collapse is a diagonal of ones.

    Args:
        path: PNG file to write.
        panels: for each method [K, K]; rows are class means, columns class vectors. NaN is left blank.
        class_names: K names.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    labels = [name if len(name) <= _MAX_LETTERS else f"{name[: _MAX_LETTERS - 1]}…" for name in class_names]
    columns = min(len(panels), _MAX_COLUMNS)
    rows = -(-len(panels) // columns)
    margin_inch = 0.09 * max(map(len, labels))
    figure = new_figure((1.0 + margin_inch + 3.7 * columns, 0.4 + margin_inch + 3.9 * rows))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (name, cosine_KK) in zip(grid, panels.items(), strict=False):
        own = cosine_KK.diagonal().nanmean()
        image = _draw_heat_map(axes, cosine_KK, f"{name}\nmean with its own class vector {own:.2f}")
    for place, axes in enumerate(grid):
        axes.set_visible(place < len(panels))
        _name_classes(axes, labels)
    figure.colorbar(image, ax=list(grid), label="cosine of class mean with class vector", shrink=0.8, pad=0.01)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def cosines(mean_KD: Tensor) -> Tensor:
    """float64 [K, K] cosines of the rows, centred on the mean of the rows that are not zero; NaN at zero rows."""
    mean_KD = mean_KD.detach().cpu().double()
    seen_K = mean_KD.norm(dim=1) > 0
    centred_KD = torch.where(seen_K[:, None], mean_KD - mean_KD[seen_K].mean(dim=0), torch.nan)
    unit_KD = torch.nn.functional.normalize(centred_KD, dim=1)
    return unit_KD @ unit_KD.T


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


def _draw_curve(axes: Any, place: int, name: str, points: Sequence[tuple[int, float]], metric: MetricInfo) -> None:
    scale = 100 if metric.unit == PERCENT else 1
    last = f"{100 * points[-1][1]:.1f} %" if metric.unit == PERCENT else metric.show(points[-1][1])
    axes.plot(
        [number for number, _ in points],
        [scale * value for _, value in points],
        label=f"{name}, last {last}",
        color=_COLOURS[place % len(_COLOURS)],
        linestyle=_dash(place),
        marker=_MARKERS[place % len(_MARKERS)],
        markersize=4.5,
        markevery=max(1, len(points) // 20),
        linewidth=1.8,
    )


def _draw_band(axes: Any, place: int, name: str, curves_: Sequence[Sequence[tuple[int, float]]]) -> None:
    by_round: dict[int, list[float]] = {}
    for number, value in (point for points in curves_ for point in points):
        by_round.setdefault(number, []).append(value)
    numbers = sorted(by_round)
    colour = _COLOURS[place % len(_COLOURS)]
    means = [sum(by_round[number]) / len(by_round[number]) for number in numbers]
    axes.plot(numbers, means, label=name, color=colour, linestyle=_dash(place), linewidth=1.8)
    lows, highs = ([pick(by_round[number]) for number in numbers] for pick in (min, max))
    axes.fill_between(numbers, lows, highs, color=colour, alpha=0.15, linewidth=0)


def _dash(place: int) -> _Dash:
    """A line style that differs between the two uses of a colour."""
    return _DASHES[(place + place // len(_COLOURS)) % len(_DASHES)]


def _draw_heat_map(axes: Any, cos_KK: Tensor, title: str) -> Any:
    image = axes.imshow(cos_KK.numpy(), cmap="PuOr", vmin=-1, vmax=1)
    axes.set_facecolor("#cccccc")  # shows through where a cell is NaN
    axes.set_title(title, fontsize=10)
    if len(cos_KK) <= _MAX_ANNOTATED:
        for row, column in torch.isfinite(cos_KK).nonzero().tolist():
            value = cos_KK[row, column].item()
            ink = "white" if abs(value) > 0.6 else "black"
            text = f"{round(value, 2) + 0.0:.2f}".replace("0.", ".").removesuffix(
                ".00"
            )  # + 0.0: no minus before 0
            text = text or "0"
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=ink)
    return image


def _name_classes(axes: Any, labels: Sequence[str]) -> None:
    places, size = range(len(labels)), 9 if len(labels) <= _MAX_ANNOTATED else 7
    axes.set_xticks(places, labels, rotation=90 if max(map(len, labels)) > 2 else 0, fontsize=size)
    axes.set_yticks(places, labels, fontsize=size)
    axes.tick_params(length=0)


def _off_diagonal(square_KK: Tensor) -> Tensor:
    return square_KK[~torch.eye(len(square_KK), dtype=torch.bool)]


def _distance(cos_KK: Tensor, target_KK: Tensor) -> float:
    return float(_off_diagonal(cos_KK - target_KK).abs().nanmean())
