"""Generated streets: cars with windows and wheels, people with head, torso and legs, and balls before road and
sky.

Painted from back to front; everything follows from a seed. A client may have a site of its own, which prefers one
of the things. Knows neither options nor tensors.

Legend: H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednc.common.seeds import derive
from fednc.tasks.dense.maps import NO_INSTANCE

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

CLASSES = ("sky", "road", "car", "person", "ball")
THINGS = ("car", "person", "ball")
PARTS = {"car": ("body", "window", "wheel"), "person": ("head", "torso", "legs")}
_MOST_OBJECTS = 4


@dataclass(frozen=True, kw_only=True)
class StreetSettings:
    """What streets are like.

    Attributes:
        size: height and width in pixels.
        noise: standard deviation of the noise on pixels in 0..1.
        skew: how much more often a site has the thing that it prefers; 1: all equally often.
        site: (number, of how many): site number i prefers thing i modulo their number.
    """

    size: tuple[int, int] = (48, 48)
    noise: float = 0.08
    skew: float = 1.0
    site: tuple[int, int] = (0, 1)


@dataclass(frozen=True, eq=False)
class Street:
    """One picture [H, W, 3] with its maps [H, W]; parts count from 1 in each class, 0 is none."""

    pixel: Bytes
    label: Bytes
    instance: np.ndarray[Any, np.dtype[np.int16]]
    part: Bytes


class _Painting:
    def __init__(self, settings: StreetSettings, random: np.random.Generator) -> None:
        height, width = settings.size
        self.random, self.height, self.width = random, height, width
        self.down_HW, self.right_HW = (np.mgrid[0:height, 0:width] + 0.5).astype(np.float64)
        self.horizon = height * random.uniform(0.3, 0.5)
        road_HW = self.down_HW >= self.horizon
        self.label = np.where(road_HW, CLASSES.index("road"), CLASSES.index("sky")).astype(np.uint8)
        self.instance = np.full((height, width), NO_INSTANCE, np.int16)
        self.part = np.zeros((height, width), np.uint8)
        sky, road = random.uniform([0.4, 0.6, 0.8], [0.6, 0.8, 1.0]), np.full(3, random.uniform(0.3, 0.5))
        self.colour = np.where(road_HW[..., None], road, sky)
        self.count = 0

    def add(self, name: str) -> None:
        """Paint a thing over what is there, on the road or, for half of the balls, above it."""
        flies = name == "ball" and self.random.random() < 0.5
        foot = self.random.uniform(0.1, 0.5) * self.height if flies else self._foot()
        nearness = 0.5 if flies else (foot - self.horizon) / (self.height - self.horizon)
        size = self.height * (0.55 + 0.45 * nearness)  # of everything, smaller when far away
        middle = self.random.uniform(0.1, 0.9) * self.width
        for mask_HW, part, colour in _SHAPES[name](self, middle, foot, size):
            self.label[mask_HW] = CLASSES.index(name)
            self.instance[mask_HW] = self.count
            self.part[mask_HW] = part
            self.colour[mask_HW] = colour
        self.count += 1

    def _foot(self) -> float:
        return float(self.random.uniform(self.horizon + 0.1 * self.height, 0.98 * self.height))

    def box(self, left: float, right: float, top: float, bottom: float) -> Mask:
        """Pixels whose centre is inside."""
        found: Mask = (self.right_HW >= left) & (self.right_HW < right)
        found = found & (self.down_HW >= top) & (self.down_HW < bottom)
        return found

    def disc(self, right: float, down: float, radius: float) -> Mask:
        """Pixels whose centre is inside."""
        found: Mask = (self.right_HW - right) ** 2 + (self.down_HW - down) ** 2 < radius**2
        return found


Painted = list[tuple[Mask, int, Floats]]


def _car(on: _Painting, middle: float, foot: float, size: float) -> Painted:
    long, high = size * on.random.uniform(0.5, 0.6), size * on.random.uniform(0.24, 0.3)
    paint = on.random.uniform([0.5, 0.0, 0.0], [1.0, 0.35, 0.35])[on.random.permutation(3)]
    wheel = high * 0.27
    body = on.box(middle - long / 2, middle + long / 2, foot - 0.65 * high, foot - wheel)
    cabin = on.box(middle - long * 0.3, middle + long * 0.3, foot - 1.25 * high, foot - 0.6 * high)
    window = on.box(middle - long * 0.24, middle + long * 0.24, foot - 1.12 * high, foot - 0.7 * high)
    wheels = on.disc(middle - long * 0.28, foot - wheel, wheel) | on.disc(
        middle + long * 0.28, foot - wheel, wheel
    )
    glass, rubber = np.array([0.75, 0.9, 0.95]), np.full(3, 0.08)
    return [(body | cabin, 1, paint), (window, 2, glass), (wheels, 3, rubber)]


def _person(on: _Painting, middle: float, foot: float, size: float) -> Painted:
    high = size * on.random.uniform(0.5, 0.6)
    wide, radius = high * 0.17, high * 0.14
    skin = np.array([0.9, 0.7, 0.55]) * on.random.uniform(0.6, 1.0)
    shirt, trousers = on.random.uniform(0.3, 1.0, 3), on.random.uniform(0.0, 0.4, 3)
    legs = on.box(middle - wide * 0.8, middle + wide * 0.8, foot - 0.42 * high, foot)
    torso = on.box(middle - wide, middle + wide, foot - 0.78 * high, foot - 0.42 * high)
    head = on.disc(middle, foot - 0.87 * high, radius)
    return [(legs, 3, trousers), (torso, 2, shirt), (head, 1, skin)]


def _ball(on: _Painting, middle: float, foot: float, size: float) -> Painted:
    radius = size * on.random.uniform(0.1, 0.14)
    return [(on.disc(middle, foot - radius, radius), 0, on.random.uniform([0.8, 0.5, 0.0], [1.0, 0.9, 0.3]))]


_SHAPES: dict[str, Callable[[_Painting, float, float, float], Painted]] = {
    "car": _car,
    "person": _person,
    "ball": _ball,
}


def draw_street(settings: StreetSettings, random: np.random.Generator) -> Street:
    """A street with one to four things."""
    painting = _Painting(settings, random)
    number, of = settings.site
    weight = np.ones(len(THINGS))
    if of > 1:
        weight[number % len(THINGS)] = settings.skew
    for name in random.choice(THINGS, size=random.integers(1, _MOST_OBJECTS + 1), p=weight / weight.sum()):
        painting.add(str(name))
    noisy = painting.colour + random.normal(0, settings.noise, painting.colour.shape)
    pixel = (noisy.clip(0, 1) * 255).round().astype(np.uint8)
    return Street(pixel=pixel, label=painting.label, instance=painting.instance, part=painting.part)


def draw_streets(settings: StreetSettings, count: int, seed: int, purpose: str) -> list[Street]:
    """`count` streets. Street i follows from the seed, the purpose, the site and i alone."""
    number, of = settings.site
    path = (purpose, *((f"site-{number}-of-{of}",) if of > 1 else ()))
    return [draw_street(settings, np.random.default_rng(derive(seed, "street", *path, i))) for i in range(count)]
