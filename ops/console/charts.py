"""Charts as SVG text for the console's pages: lines over rounds, sparklines, the simplex, cosines of class means.

Called by the templates. No colours in here: classes are styled by `static/console.css`, so one picture fits light
and dark. Sizes do not grow with the number of rounds or classes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]
MOST_POINTS = 240  # drawn per line; more are thinned out
_WIDTH, _WIDE = 420, 860  # of a chart, and of one that has a row to itself
_TALL, _LOW = 168, 116  # height of a chart, and of one among several
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 22
_LARGEST = 1e300  # what is beyond cannot be drawn: differences would overflow
_LAST_ROUND = 2.0**52  # beyond, a round and the next one are the same number
_SAME = 1e-12  # of a value: below that two of them are one, because numbers between them would be rounded away
_STEPS = 4  # at most, between the numbers of an axis


@dataclass(frozen=True)
class ChartLine:
    """One line of a chart: (round, value), and the class that styles it."""

    name: str
    points: Points
    css: str = "a"


@dataclass(frozen=True)
class Band:
    """A range around a line: (round, low, high)."""

    name: str
    points: Sequence[tuple[float, float, float]] = field(default_factory=tuple)


def line_chart(
    lines: Sequence[ChartLine],
    show: Callable[[float], str],
    *,
    band: Band | None = None,
    last_round: float = 0,
    from_zero: bool = False,
    highest: float = math.inf,
    label: str = "",
    low: bool = False,
    wide: bool = False,
) -> Markup:
    """Lines over rounds.

    Args:
        show: a value as text.
        last_round: the round at the right edge, if it is not yet reached.
        from_zero: the scale begins at 0.
        highest: no value can be above it, so the scale does not go there.
        low: less tall, for a column of charts.
        wide: for a chart that has a row to itself.
    """
    kept = [ChartLine(line.name, thinned(finite(line.points)), line.css) for line in lines]
    kept = [line for line in kept if line.points]
    if not kept:
        return Markup("")
    ranges = [p for p in (band.points if band else ()) if _is_drawable(p[1]) and _is_drawable(p[2])]
    ranges = ranges[:: max(1, len(ranges) // MOST_POINTS)]
    xs = [x for line in kept for x, _ in line.points]
    ys = [y for line in kept for _, y in line.points] + [y for p in ranges for y in p[1:]]
    width, height = _WIDE if wide else _WIDTH, _LOW if low else _TALL
    ticks = _ticks(min(ys), max(ys), from_zero, highest)
    plot = _Plot(width, height, min(xs), max(*xs, last_round, min(xs) + 1), ticks)
    parts = [plot.grid(show)]
    if ranges:
        upper = [plot.at(x, high) for x, _, high in ranges]
        lower = [plot.at(x, low) for x, low, _ in reversed(ranges)]
        parts.append(f'<path class="band" d="M{" L".join([*upper, *lower])} Z"/>')
    for line in kept:
        parts.append(f'<path class="line {line.css}" d="M{" L".join(plot.at(*p) for p in line.points)}"/>')
        parts.append(_dots(plot, line))
    legend = "; ".join(f"{line.name} {show(line.points[-1][1])}" for line in kept)
    data = escape("|".join(_readout(line, plot, show) for line in kept))
    title = escape(f"{label}: {legend}" if label else legend)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{title}" data-lines="{data}">'
        f"{''.join(parts)}"
        f'<line class="cross" y1="{_TOP}" y2="{height - _BOTTOM}" x1="0" x2="0" visibility="hidden"/>'
        "</svg>"
    )


def spark(points: Points, *, lowest: float | None = None, highest: float | None = None) -> Markup:
    """A curve without axes, for a table."""
    kept = thinned(finite(points), 48)
    if not kept:
        return Markup('<span class="quiet">–</span>')
    low = min(y for _, y in kept) if lowest is None else lowest
    high = max(y for _, y in kept) if highest is None else highest
    first, last = kept[0][0], kept[-1][0]
    wide, tall = 84, 18

    def at(x: float, y: float) -> str:
        across = (x - first) / (last - first) if last > first else 1.0
        up = (min(max(y, low), high) - low) / (high - low) if high > low else 0.5
        return f"{2 + across * (wide - 4):.1f} {tall - 2 - up * (tall - 4):.1f}"

    end = at(*kept[-1]).split()
    path = f'<path class="line a" d="M{" L".join(at(*p) for p in kept)}"/>' if len(kept) > 1 else ""
    return Markup(
        f'<svg class="spark" viewBox="0 0 {wide} {tall}" aria-hidden="true">{path}'
        f'<circle class="dot a" cx="{end[0]}" cy="{end[1]}" r="1.8"/></svg>'
    )


def histogram(values: Sequence[float], show: Callable[[float], str], label: str) -> Markup:
    """How many clients have which value."""
    kept = sorted(filter(_is_drawable, values))
    if len(kept) < 2 or kept[0] == kept[-1]:
        return Markup("")
    bins = min(24, max(6, round(math.sqrt(len(kept)))))
    low, high = kept[0], kept[-1]
    counts = [0] * bins
    for value in kept:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    wide, tall, floor = 420, 84, 18
    step = wide / bins
    bars = "".join(
        f'<rect class="bar" x="{i * step + 1:.1f}" width="{step - 2:.1f}" '
        f'y="{(tall - floor) * (1 - n / max(counts)):.1f}" height="{(tall - floor) * n / max(counts):.1f}">'
        f"<title>{n} between {escape(show(low + (high - low) * i / bins))} and "
        f"{escape(show(low + (high - low) * (i + 1) / bins))}</title></rect>"
        for i, n in enumerate(counts)
        if n
    )
    median = kept[len(kept) // 2]
    at = (median - low) / (high - low) * wide
    side = "end" if at > wide * 0.8 else "start" if at < wide * 0.2 else "middle"
    return Markup(
        f'<svg class="chart low" viewBox="0 0 {wide} {tall}" role="img" aria-label="{escape(label)}">{bars}'
        f'<line class="axis" x1="0" x2="{wide}" y1="{tall - floor}" y2="{tall - floor}"/>'
        f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{tall - floor}"/>'
        f'<text class="tick" x="0" y="{tall - 4}">{escape(show(low))}</text>'
        f'<text class="tick strong" x="{at:.1f}" y="{tall - 4}" text-anchor="{side}">'
        f"{escape(show(median)) if 0.2 < at / wide < 0.8 else ''}</text>"
        f'<text class="tick" x="{wide}" y="{tall - 4}" text-anchor="end">{escape(show(high))}</text></svg>'
    )


def simplex(names: Sequence[str], spots: Sequence[tuple[float, float] | None], trails: Sequence[Points]) -> Markup:
    """The class means in the plane in which the frame's vertices are the corners of a regular polygon.

    Args:
        names: of the classes, one per corner.
        spots: where each class mean lies; a vertex lies at distance 1. None: not seen yet.
        trails: where it lay in earlier rounds.
    """
    size, centre, radius = 340, 170, 128
    parts = [f'<circle class="grid" cx="{centre}" cy="{centre}" r="{radius}"/>']

    def place(spot: tuple[float, float]) -> tuple[float, float]:
        return centre + radius * spot[0], centre - radius * spot[1]

    every = 1 if len(names) <= 24 else math.ceil(len(names) / 12)  # one label for as many corners
    for k, name in enumerate(names):
        angle = corner(k, len(names))
        x, y = place(angle)
        parts.append(f'<line class="spoke" x1="{centre}" y1="{centre}" x2="{x:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<circle class="vertex" cx="{x:.1f}" cy="{y:.1f}" r="{4 if every == 1 else 2}"/>')
        if k % every == 0:
            lx, ly = centre + (radius + 20) * angle[0], centre - (radius + 20) * angle[1]
            side = "middle" if abs(angle[0]) < 0.3 else "start" if angle[0] > 0 else "end"
            parts.append(
                f'<text class="tick" x="{lx:.1f}" y="{ly + 4:.1f}" text-anchor="{side}">{_short(name)}</text>'
            )
    thin = "" if every == 1 else " thin"
    for k, spot in enumerate(spots):
        if spot is None:
            continue
        if len(trails[k]) > 1:
            steps = " L".join("{:.1f} {:.1f}".format(*place(p)) for p in [*trails[k], spot])
            parts.append(f'<path class="trail" d="M{steps}"/>')
        (x, y), (vx, vy) = place(spot), place(corner(k, len(names)))
        parts.append(f'<line class="gap{thin}" x1="{x:.1f}" y1="{y:.1f}" x2="{vx:.1f}" y2="{vy:.1f}"/>')
        parts.append(f'<circle class="dot a" cx="{x:.1f}" cy="{y:.1f}" r="{3.2 if every == 1 else 2}">')
        parts.append(f"<title>{escape(names[k])}</title></circle>")
    return Markup(
        f'<svg class="simplex" viewBox="-30 0 {size + 60} {size}" role="img" '
        f'aria-label="class means and vertices">{"".join(parts)}</svg>'
    )


def corner(k: int, corners: int) -> tuple[float, float]:
    """Corner k of a regular polygon; corner 0 is on top, the others follow clockwise."""
    angle = math.pi / 2 - 2 * math.pi * k / corners
    return math.cos(angle), math.sin(angle)


def cosine_rows(rows: Sequence[tuple[str, float, float, str]]) -> Markup:
    """Per class: the cosine of its mean to its own vertex (filled) and to the nearest other one (hollow).

    Args:
        rows: (class, own cosine, largest other cosine, class of that other one).
    """
    tall, left, wide = 18, 96, 420
    quarters = math.ceil(-4 * min([0.0, *(min(own, other) for _, own, other, _ in rows)]))
    low = -quarters / 4

    def across(value: float) -> float:
        return left + (wide - left - 10) * (value - low) / (1 - low)

    height = tall * len(rows) + 20
    parts = []
    for quarter in range(-quarters, 5, 1 if quarters < 3 else 2):
        x, side = across(quarter / 4), "end" if quarter == 4 else "middle"
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - 18}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - 4}" text-anchor="{side}">{quarter / 4:g}</text>'
        )
    for i, (name, own, other, nearest) in enumerate(rows):
        y = tall * i + 11
        css = "warn" if own - other < 0.2 else "a"
        parts.append(
            f'<text class="tick strong" x="{left - 10}" y="{y + 4}" text-anchor="end">{_short(name, 14)}</text>'
            f'<line class="gap {css}" x1="{across(other):.1f}" x2="{across(own):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="hollow {css}" cx="{across(other):.1f}" cy="{y}" r="3.4">'
            f"<title>{escape(name)}: {other:.3f} to the vertex of {escape(nearest)}</title></circle>"
            f'<circle class="dot {css}" cx="{across(own):.1f}" cy="{y}" r="3.8">'
            f"<title>{escape(name)}: {own:.3f} to its own vertex</title></circle>"
        )
    return Markup(
        f'<svg class="chart" viewBox="0 0 {wide} {height}" role="img" aria-label="cosines of class means">'
        f"{''.join(parts)}</svg>"
    )


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most about `most` of the points: of each stretch its lowest and its highest, and always the last."""
    if len(points) <= most:
        return list(points)
    step = math.ceil(2 * len(points) / most)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), step):
        stretch = points[start : start + step]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def finite(points: Points) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if abs(x) <= _LAST_ROUND and _is_drawable(y)]


def _is_drawable(value: float) -> bool:
    return abs(value) <= _LARGEST  # NaN is not


class _Plot:
    """The area between the axes."""

    def __init__(self, width: int, height: int, first: float, last: float, ticks: Sequence[float]) -> None:
        self._width, self._height, self._first, self._last = width, height, first, last
        self._low, self._high = ticks[0], ticks[-1]
        self._ticks = ticks if height == _TALL else [self._low, self._high]

    def x(self, value: float) -> float:
        return _LEFT + (self._width - _LEFT - _RIGHT) * (value - self._first) / (self._last - self._first)

    def y(self, value: float) -> float:
        return (
            self._height
            - _BOTTOM
            - (self._height - _TOP - _BOTTOM) * (value - self._low) / (self._high - self._low)
        )

    def at(self, x: float, y: float) -> str:
        return f"{self.x(x):.1f} {self.y(y):.1f}"

    def grid(self, show: Callable[[float], str]) -> str:
        parts = []
        for value in self._ticks:
            y = self.y(value)
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{self._width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            parts.append(
                f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">'
                f"{escape(show(value).replace('.0%', '%'))}</text>"
            )
        for value, side in ((self._first, "start"), (self._last, "end")):
            parts.append(
                f'<text class="tick" x="{self.x(value):.1f}" y="{self._height - 5}" text-anchor="{side}">'
                f"{value:g}</text>"
            )
        return "".join(parts)


def _dots(plot: _Plot, line: ChartLine) -> str:
    """The last point; all points, as long as they are few."""
    shown = line.points if len(line.points) <= 2 else line.points[-1:]
    return "".join(
        f'<circle class="dot {line.css}" cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}" r="2.6"/>' for x, y in shown
    )


def _readout(line: ChartLine, plot: _Plot, show: Callable[[float], str]) -> str:
    """What the script shows under the pointer: name, then place, round and value of each point."""
    points = ",".join(f"{plot.x(x):.0f}:{x:g}:{show(y).replace(',', '').replace('|', '')}" for x, y in line.points)
    return f"{line.name.replace('|', ' ').replace(',', ' ')},{points}"


def _ticks(low: float, high: float, from_zero: bool, highest: float) -> list[float]:
    """Three to five round numbers around both."""
    low = min(0.0, low) if from_zero else low
    if high - low <= max(abs(low), abs(high)) * _SAME or high - low < sys.float_info.min / _SAME:
        pad = abs(high) * 0.1 if abs(high) > 1 / _LARGEST else 1.0
        low, high = (low, high + pad) if from_zero else (low - pad, min(high + pad, max(high, highest)))
    tenth = 10 ** math.floor(math.log10((high - low) / _STEPS))
    for unit in (tenth * times for times in (1, 2, 2.5, 5, 10, 20)):
        first = math.floor(low / unit + 1e-9)
        steps = math.ceil(high / unit - 1e-9) - first
        if steps <= _STEPS:
            return [min(unit * (first + i), max(highest, high)) for i in range(steps + 1)]
    return [low, high]


def _short(name: str, most: int = 12) -> str:
    text = name if len(name) <= most else f"{name[: most - 1]}…"
    return str(escape(text))
