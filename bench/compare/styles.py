"""How each variant of a comparison looks: one colour, line style and marker in all pictures and settings.

Called by whoever draws pictures. Knows names alone; imports nothing to draw with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Dash = str | tuple[int, tuple[float, ...]]

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Okabe and Ito's palette and a few more, which people with any common colour blindness can tell apart.
COLOURS = (
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#7F7F7F",
    "#882255",
    "#332288",
    "#999933",
)
_DASHES: tuple[Dash, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))


@dataclass(frozen=True)
class Look:
    """How the line of one variant looks. Line style is that of matplotlib."""

    colour: str
    dash: Dash
    marker: str


_KEPT = {"fednc": Look("#0072B2", "-", "*"), "fedavg": Look("#D55E00", (0, (5, 1.5)), "p")}


def styles(variants: Iterable[str]) -> dict[str, Look]:
    """A style for each variant by its place: give all that the comparison has, not only those in a picture.

    fednc and fedavg look the same everywhere, and no other has their colour or marker. Up to 63 others differ in
    colour or marker; neighbours differ in both.
    """
    names = dict.fromkeys(variants)
    others = [name for name in names if name not in _KEPT]
    found = {name: _style(place) for place, name in enumerate(others)}
    return {name: _KEPT.get(name) or found[name] for name in names}


def _style(place: int) -> Look:
    turn, colour = divmod(place, len(COLOURS))
    shift = colour + turn  # so that the uses of a colour differ
    return Look(COLOURS[colour], _DASHES[shift % len(_DASHES)], MARKERS[shift % len(MARKERS)])
