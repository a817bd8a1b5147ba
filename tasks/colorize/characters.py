"""Generated characters with line art, colours and regions: hair, face, eyes, mouth, clothes before a background.

Everything follows from a seed. Each artist has a palette (colours that he prefers in each region) and a style
(shape of the hair, size of the eyes, width of the lines, depth of the shading). Knows no task.

Legend: H height, W width, R regions.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednc.common.seeds import derive

Floats = np.ndarray[Any, np.dtype[np.float64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

REGIONS = ("background", "clothes", "hair", "face", "eyes", "mouth")
BACKGROUND, CLOTHES, HAIR, FACE, EYES, MOUTH = range(len(REGIONS))
_SPREAD = 0.06  # of hues around those that an artist prefers
_INK = 45  # of 255: the darkest line


@dataclass(frozen=True, kw_only=True)
class Style:
    """How an artist draws.

    Attributes:
        hue_R: preferred hue of each region, 0 to 1.
        hair: length of the hair below the middle of the face, in halves of the picture.
        fringe: how far the hair comes down over the forehead.
        eye: half the height of an eye.
        line: width of lines in pixels of a 64-pixel picture.
        shade: how much darker the shaded half is, 0 to 1.
        free: share of regions whose hue is any, not near the preferred one.
    """

    hue_R: tuple[float, ...]
    hair: float
    fringe: float
    eye: float
    line: float
    shade: float
    free: float


def style_of(artist: int, of: int, seed: int, free: float) -> Style:
    """The style of artist number `artist` of `of`: hues evenly around the circle, the rest drawn."""
    random = np.random.default_rng(derive(seed, "artist", artist, of))
    first = artist / of
    hues = tuple(float((first + offset) % 1) for offset in random.uniform(-0.1, 0.25, len(REGIONS)))
    return Style(
        hue_R=hues,
        hair=float(random.uniform(0.1, 0.7)),
        fringe=float(random.uniform(0.15, 0.35)),
        eye=float(random.uniform(0.06, 0.13)),
        line=float(random.uniform(0.8, 1.8)),
        shade=float(random.uniform(0.0, 0.45)),
        free=free,
    )


@dataclass(frozen=True, eq=False)
class Character:
    """One picture: line art [H, W], colours [H, W, 3], number of the region of each pixel [H, W]."""

    line: Bytes
    colour: Bytes
    region: Bytes


def draw_character(size: tuple[int, int], style: Style, random: np.random.Generator) -> Character:
    """A character in this style, with its own proportions and colours."""
    height, width = size
    row, column = np.mgrid[0:height, 0:width].astype(np.float64)
    v, u = 2 * (row + 0.5) / height - 1, 2 * (column + 0.5) / width - 1
    region, light = _regions(u - random.uniform(-0.12, 0.12), v - random.uniform(-0.06, 0.06), style, random)
    table = np.stack([_colour(style, r, random) for r in range(len(REGIONS))])
    shade = 1 - style.shade * light * (region != BACKGROUND)
    colour = (table[region] * shade[..., None]).clip(0, 1)
    return Character(
        line=_ink(region, style.line * height / 64),
        colour=(255 * colour).round().astype(np.uint8),
        region=region.astype(np.uint8),
    )


def _regions(
    u: Floats, v: Floats, style: Style, random: np.random.Generator
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Floats]:
    """(the region of each pixel, 1 where it is in the shade), drawn from back to front."""
    face_u, face_v = random.uniform(0.34, 0.44), random.uniform(0.4, 0.5)
    region = np.full(u.shape, BACKGROUND)
    hair_v = face_v + 0.12
    back = ((u / (face_u + 0.16)) ** 2 + ((v + 0.12) / hair_v) ** 2 < 1) | (
        (abs(u) < face_u + 0.12 - 0.05 * np.sin(9 * v)) & (v > -0.12) & (v < style.hair)
    )
    region[back] = HAIR
    shoulder = random.uniform(0.5, 0.75)
    region[(v > 0.5) & (abs(u) < shoulder * np.sqrt(np.clip((v - 0.45) * 2, 0, 1)))] = CLOTHES
    region[(abs(u) < 0.13) & (v > 0) & (v < 0.58)] = FACE  # the neck
    region[(u / face_u) ** 2 + ((v + 0.05) / face_v) ** 2 < 1] = FACE
    parting = random.uniform(-0.5, 0.5) * face_u
    low = -0.05 - face_v + style.fringe + 0.5 * abs(u - parting)
    region[(v < low) & back & (v < 0)] = HAIR
    for side in (-1, 1):
        eye = ((u - side * 0.45 * face_u) / (0.75 * style.eye)) ** 2 + ((v - 0.02) / style.eye) ** 2 < 1
        region[eye & (region == FACE)] = EYES
    mouth_u = random.uniform(0.08, 0.15)
    region[((u / mouth_u) ** 2 + ((v - 0.25) / 0.05) ** 2 < 1) & (region == FACE)] = MOUTH
    side = random.choice([-1.0, 1.0])
    return region, (side * u > 0.12 + 0.1 * v).astype(np.float64)


def _colour(style: Style, region: int, random: np.random.Generator) -> Floats:
    """Near the artist's hue, sometimes any; faces are light, so that lines and eyes can be seen."""
    near, any_hue = style.hue_R[region] + random.normal(0, _SPREAD), random.uniform()
    own = any_hue if random.uniform() < style.free else near
    depth, value = random.uniform(0.45, 0.95), random.uniform(0.5, 0.95)
    if region == FACE:
        depth, value = random.uniform(0.15, 0.4), random.uniform(0.85, 1.0)
    return np.array(colorsys.hsv_to_rgb(own % 1, depth, value))


def _ink(region: np.ndarray[Any, np.dtype[np.int64]], width: float) -> Bytes:
    """Dark lines on white paper where regions meet, as wide as the artist draws."""
    edge = np.zeros(region.shape, bool)
    edge[:, :-1] |= region[:, :-1] != region[:, 1:]
    edge[:-1] |= region[:-1] != region[1:]
    row, column = np.nonzero(edge)
    found = np.full(region.shape, 255.0)
    reach = int(np.ceil(width / 2 + 0.5))
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            dark = np.clip(width / 2 + 0.5 - np.hypot(down, right), 0, 1)
            there = (
                (row + down).clip(0, region.shape[0] - 1),
                (column + right).clip(0, region.shape[1] - 1),
            )
            np.minimum.at(found, there, 255 - (255 - _INK) * dark)
    return found.round().astype(np.uint8)


def draw_characters(
    size: tuple[int, int], artist: int | None, of: int, free: float, count: int, seed: int, purpose: str
) -> tuple[list[Character], list[str]]:
    """(`count` characters, the artist of each); artist None: all `of` them in turn.

    A character follows from the seed, the purpose, its artist and its number alone.
    """
    styles = [style_of(number, of, seed, free) for number in range(of)]
    found, names = [], []
    for index in range(count):
        who = index % of if artist is None else artist
        random = np.random.default_rng(derive(seed, "character", purpose, of, who, index))
        found.append(draw_character(size, styles[who], random))
        names.append(str(who))
    return found, names
