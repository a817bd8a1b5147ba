"""Clouds made by a formula, for trying the task without data: six forms with random proportions and noise, and
things that are put together from parts.

Data spec `shapes` or `shapes:COUNT`, and `parts` or `parts:COUNT`; training and test clouds differ. The same
count gives the same clouds on every machine.

Legend: N clouds, P points.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fednc.common.seeds import generator as seeded

NOISE = 0.01
STRETCH = 0.35  # standard deviation of the logarithm of each axis's length


def make(count: int, points: int, purpose: str) -> tuple[Tensor, list[str]]:
    """(clouds [N, P, 3], the name of each one's form): the forms in turn."""
    rng = seeded(0, "shapes", purpose)
    names = [FORM_NAMES[i % len(FORM_NAMES)] for i in range(count)]
    clouds = [_one(_FORMS[name], points, rng) for name in names]
    return torch.stack(clouds) if clouds else torch.zeros(0, points, 3), names


def make_parts(count: int, points: int, purpose: str) -> tuple[Tensor, Tensor]:
    """(clouds [N, P, 3], the number of each point's part [N, P]).

    A shaft with a ball at one end and a box at the other. Half the points
    are on the shaft; the ends have random sizes and the box leans at random.
    """
    rng = seeded(0, "parts", purpose)
    made = [_tool(points, rng) for _ in range(count)]
    return torch.stack([point_P3 for point_P3, _ in made]), torch.stack([part_P for _, part_P in made])


def _tool(points: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    part_P = torch.multinomial(torch.tensor([0.5, 0.25, 0.25]), points, replacement=True, generator=rng)
    drawn_P3 = torch.rand(points, 3, generator=rng)
    thick, ball, box, lean = (0.5 + torch.rand(4, generator=rng)).tolist()
    shaft_P3 = _cylinder(drawn_P3) * torch.tensor([0.15 * thick, 0.15 * thick, 1.0])
    ball_P3 = _ellipsoid(drawn_P3) * 0.35 * ball + torch.tensor([0.0, 0, 1])
    turn_33 = torch.tensor(
        [[math.cos(lean), 0, math.sin(lean)], [0, 1.0, 0], [-math.sin(lean), 0, math.cos(lean)]]
    )
    box_P3 = _box(drawn_P3) * torch.tensor([0.5, 0.2, 0.25]) * box @ turn_33 - torch.tensor([0.0, 0, 1])
    all_3P3 = torch.stack([shaft_P3, ball_P3, box_P3])
    point_P3 = all_3P3[part_P, torch.arange(points)]
    return point_P3 + NOISE * torch.randn(points, 3, generator=rng), part_P


def _one(form: Callable[[Tensor], Tensor], points: int, rng: torch.Generator) -> Tensor:
    point_P3 = form(torch.rand(points, 3, generator=rng))
    stretch_3 = torch.exp(STRETCH * torch.randn(3, generator=rng))
    return point_P3 * stretch_3 + NOISE * torch.randn(points, 3, generator=rng)


def _ellipsoid(u_P3: Tensor) -> Tensor:
    height_P = 2 * u_P3[:, 0] - 1
    return _ring((1 - height_P.square()).sqrt(), u_P3[:, 1], height_P)


def _box(u_P3: Tensor) -> Tensor:
    face_P = (u_P3[:, 2] * 6).long().clamp(max=5)
    flat_P2 = 2 * u_P3[:, :2] - 1
    side_P = torch.where(face_P % 2 == 0, -1.0, 1.0)
    columns = torch.stack([side_P, flat_P2[:, 0], flat_P2[:, 1]], dim=1)
    order_P3 = (torch.arange(3) + (face_P // 2)[:, None]) % 3
    return columns.gather(1, order_P3)


def _cylinder(u_P3: Tensor) -> Tensor:
    return _ring(torch.ones(len(u_P3)), u_P3[:, 1], 2 * u_P3[:, 0] - 1)


def _cone(u_P3: Tensor) -> Tensor:
    along_P = u_P3[:, 0].sqrt()
    return _ring(along_P, u_P3[:, 1], 1 - 2 * along_P)


def _torus(u_P3: Tensor) -> Tensor:
    around_P = 2 * math.pi * u_P3[:, 0]
    return _ring(1 + 0.35 * around_P.cos(), u_P3[:, 1], 0.35 * around_P.sin())


def _bracket(u_P3: Tensor) -> Tensor:
    """Two plates that meet at an edge."""
    flat_P, deep_P, upright_P = u_P3[:, 0] * 2, u_P3[:, 1] - 0.5, u_P3[:, 2] < 0.4
    zero_P = torch.zeros_like(flat_P)
    lying = torch.stack([flat_P, deep_P, zero_P], dim=1)
    standing = torch.stack([zero_P, deep_P, flat_P * 0.6], dim=1)
    return torch.where(upright_P[:, None], standing, lying)


def _ring(radius_P: Tensor, turn_P: Tensor, height_P: Tensor) -> Tensor:
    angle_P = 2 * math.pi * turn_P
    return torch.stack([radius_P * angle_P.cos(), radius_P * angle_P.sin(), height_P], dim=1)


_FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "ellipsoid": _ellipsoid,
    "box": _box,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
    "bracket": _bracket,
}
FORM_NAMES = tuple(_FORMS)
PART_NAMES = ("shaft", "ball", "box")
