"""Generated scenes with exact maps: objects of several shapes before a wall and a floor, drawn from back to front.

The painter's algorithm: what is nearer is drawn later and covers what is behind it. Every map (class, instance,
part, depth, normals, borders, the nearest object) is known exactly. Everything follows from a seed. Rare classes
have shares tail^k, and a client may have a site of its own, which prefers some of the classes. Knows no task.

Legend: H height, W width, K classes, O kinds of objects.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednc.common.seeds import derive
from fednc.tasks.dense.maps import NO_INSTANCE

Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

WALL, FLOOR = "wall", "floor"
STUFF = (WALL, FLOOR)
UPPER, LOWER = 1, 2  # parts of an object, in its own coordinates
_PREFERRED = 4.0  # how much more often a site has the objects that it prefers
_BUMP = 0.1  # how far the middle of an object stands out before its rim, as a share of its distance
_FALL = 0.3  # by how much the floor comes nearer; every object is nearer still
_FARTHEST = (0.6, 0.65)  # of the objects
_APART = (1.18, 1.28)  # ratio of the distances of neighbours, so that no bump reaches through a nearer object


def _star(u_HW: Floats, v_HW: Floats) -> Mask:
    radius_HW, angle_HW = np.hypot(u_HW, v_HW), np.arctan2(v_HW, u_HW)
    found_HW: Mask = radius_HW < 0.62 + 0.38 * np.cos(5 * angle_HW)
    return found_HW


def _triangle(u_HW: Floats, v_HW: Floats) -> Mask:
    found_HW: Mask = (v_HW < 0.6) & (v_HW > 1.9 * np.abs(u_HW) - 1.0)
    return found_HW


# Each takes coordinates in which the object reaches from -1 to 1.
SHAPES: dict[str, Callable[[Floats, Floats], Mask]] = {
    "disc": lambda u, v: u**2 + v**2 < 0.8,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.75,
    "triangle": _triangle,
    "ring": lambda u, v: (u**2 + v**2 < 0.95) & (u**2 + v**2 > 0.3),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 0.95),
    "star": _star,
    "bar": lambda u, v: (abs(u) < 0.3) & (abs(v) < 1.0),
    "crescent": lambda u, v: (u**2 + v**2 < 0.9) & ((u - 0.5) ** 2 + v**2 > 0.6),
    "window": lambda u, v: (np.maximum(abs(u), abs(v)) < 0.85) & (np.maximum(abs(u), abs(v)) > 0.45),
    "corner": lambda u, v: (np.maximum(abs(u), abs(v)) < 0.85) & ((u < -0.25) | (v > 0.25)),
}
MOST_OBJECTS = len(SHAPES)


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """What scenes are like.

    Attributes:
        size: height and width in pixels.
        objects: O, kinds of objects: the first of `SHAPES`.
        tail: kind k of the objects is drawn tail^k times as often as kind 0; 1: all equally often.
        noise: standard deviation of the noise on pixels in 0..1.
        tint: share of a colour of its kind in the colour of an object; the rest is drawn for each object. 0: only
            the shape tells kinds apart.
        site: (number, of how many): such a site has every so-many-th kind of object more often than others.
    """

    size: tuple[int, int] = (40, 40)
    objects: int = 9
    tail: float = 1.0
    noise: float = 0.15
    tint: float = 0.0
    site: tuple[int, int] = (0, 1)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the values of the label map."""
        return (*STUFF, *list(SHAPES)[: self.objects])

    @property
    def shares_O(self) -> Floats:
        """How often each kind of object is drawn; they add up to 1."""
        share_O = self.tail ** np.arange(self.objects, dtype=np.float64)
        number, of = self.site
        share_O = share_O * np.where(np.arange(self.objects) % of == number, _PREFERRED if of > 1 else 1.0, 1.0)
        shares_O: Floats = share_O / share_O.sum()
        return shares_O


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """One picture with its maps, each [H, W] unless it says otherwise. Depth: 0 is the camera, 1 the wall."""

    pixel_HW3: np.ndarray[Any, np.dtype[np.uint8]]
    label: np.ndarray[Any, np.dtype[np.uint8]]
    instance: np.ndarray[Any, np.dtype[np.int16]]
    part: np.ndarray[Any, np.dtype[np.uint8]]
    depth: np.ndarray[Any, np.dtype[np.float32]]
    normals: np.ndarray[Any, np.dtype[np.float32]]  # [3, H, W]: right, down, towards the camera
    edges: np.ndarray[Any, np.dtype[np.uint8]]
    saliency: np.ndarray[Any, np.dtype[np.uint8]]


class _Canvas:
    """A scene that is being painted."""

    def __init__(self, settings: SceneSettings, random: np.random.Generator) -> None:
        height, width = settings.size
        self.row_HW, self.column_HW = np.mgrid[0:height, 0:width].astype(np.float64)
        self.shape = (height, width)
        self.label = np.zeros(self.shape, np.uint8)
        self.instance = np.full(self.shape, NO_INSTANCE, np.int16)
        self.part = np.zeros(self.shape, np.uint8)
        self.depth = np.ones(self.shape)
        self.slope = np.zeros((2, *self.shape))  # change of depth, times the height, per pixel right and down
        self.colour = np.zeros((*self.shape, 3))
        self._paint_stuff(random)

    def _paint_stuff(self, random: np.random.Generator) -> None:
        height = self.shape[0]
        self.colour[:] = random.uniform(0.2, 0.8, 3)
        horizon = int(height * random.uniform(0.45, 0.75))
        floor_HW = self.row_HW >= horizon
        fall = _FALL / (height - horizon)
        self.label[floor_HW] = 1
        self.colour[floor_HW] = random.uniform(0.2, 0.8, 3)
        self.depth[floor_HW] = (1 - fall * (self.row_HW - horizon))[floor_HW]
        self.slope[1][floor_HW] = -fall * height

    def paint(self, kind: int, number: int, distance: float, tint: float, random: np.random.Generator) -> None:
        """Paint object number `number`, of the `kind`-th shape, over what is there."""
        height, width = self.shape
        radius = height * random.uniform(0.16, 0.26) * (1.15 - 0.3 * distance)
        row, column = random.uniform(0.1, 0.9) * height, random.uniform(0.1, 0.9) * width
        turn = random.uniform(-0.3, 0.3)
        right_HW, down_HW = (self.column_HW - column) / radius, (self.row_HW - row) / radius
        u_HW = np.cos(turn) * right_HW + np.sin(turn) * down_HW
        v_HW = np.cos(turn) * down_HW - np.sin(turn) * right_HW
        inside_HW = list(SHAPES.values())[kind](u_HW, v_HW)
        self.label[inside_HW] = len(STUFF) + kind
        self.instance[inside_HW] = number
        self.part[inside_HW] = np.where(v_HW < 0, UPPER, LOWER)[inside_HW]
        # A flat dome: nearest in the middle, at its distance where u^2 + v^2 = 1.
        bump = _BUMP * distance
        self.depth[inside_HW] = (distance - bump * (1 - right_HW**2 - down_HW**2))[inside_HW]
        for axis, offset_HW in enumerate((right_HW, down_HW)):
            self.slope[axis][inside_HW] = (2 * bump * offset_HW / radius * height)[inside_HW]
        own = np.array(colorsys.hsv_to_rgb(kind / MOST_OBJECTS, 0.9, 0.9))
        self.colour[inside_HW] = tint * own + (1 - tint) * random.uniform(0.0, 1.0, 3)

    def finish(self, settings: SceneSettings, random: np.random.Generator) -> Scene:
        """The scene."""
        normal = np.stack([*self.slope, np.ones(self.shape)])
        normal /= np.linalg.norm(normal, axis=0)
        light_HW1 = (0.6 + 0.4 * normal[2] - 0.25 * normal[1])[..., None]
        pixel_HW3 = self.colour * light_HW1 + random.normal(0, settings.noise, self.colour.shape)
        return Scene(
            pixel_HW3=(pixel_HW3.clip(0, 1) * 255).round().astype(np.uint8),
            label=self.label,
            instance=self.instance,
            part=self.part,
            depth=self.depth.astype(np.float32),
            normals=normal.astype(np.float32),
            edges=borders(self.label.astype(np.int64) * 1000 + self.instance),
            saliency=(self.instance == self.instance.max()).astype(np.uint8) * (self.instance.max() >= 0),
        )


def draw_scene(settings: SceneSettings, random: np.random.Generator) -> Scene:
    """A scene with two to five objects; the last one that is painted is the nearest."""
    canvas = _Canvas(settings, random)
    kinds = random.choice(settings.objects, size=random.integers(2, 6), p=settings.shares_O)
    ratios = random.uniform(*_APART, len(kinds)).cumprod() / _APART[0]
    distances = random.uniform(*_FARTHEST) / ratios
    for number, (kind, distance) in enumerate(zip(kinds, distances, strict=True)):
        canvas.paint(int(kind), number, float(distance), settings.tint, random)
    return canvas.finish(settings, random)


def draw_scenes(settings: SceneSettings, count: int, seed: int, purpose: str) -> list[Scene]:
    """`count` scenes. Scene i follows from the seed, the purpose, the site and i alone."""
    number, of = settings.site
    path = (purpose, *((f"site-{number}-of-{of}",) if of > 1 else ()))
    return [
        draw_scene(settings, np.random.default_rng(derive(seed, "scene", *path, index))) for index in range(count)
    ]


def borders(value_HW: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [H, W]: 1 where the pixel to the right or below has another value."""
    found = np.zeros(value_HW.shape, np.uint8)
    found[:, :-1] |= value_HW[:, :-1] != value_HW[:, 1:]
    found[:-1] |= value_HW[:-1] != value_HW[1:]
    return found


def next_to(value_HW: Mask) -> Mask:
    """Pixels to whose right or below one of these is: those that it makes a border of."""
    found_HW = np.zeros_like(value_HW)
    found_HW[:, :-1] |= value_HW[:, 1:]
    found_HW[:-1] |= value_HW[1:]
    return found_HW
