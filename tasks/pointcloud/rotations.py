"""Rotations of clouds: about the z axis, any, and the tilt of a simulated client.

Used by data and task. A rotation R turns a cloud of rows into `point_N3 @ R.T`.

Legend: N clouds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fednc.common.seeds import generator as seeded
from fednc.tasks.pointcloud.options import Rotation


def draw(kind: Rotation, count: int, generator: torch.Generator) -> Tensor:
    """[N, 3, 3]: random rotations of one kind; identities for `none`."""
    if kind == "none":
        return torch.eye(3).expand(count, 3, 3).clone()
    if kind == "so3":
        return of_quaternions(torch.randn(count, 4, generator=generator, dtype=torch.float64)).float()
    return about_z(2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)).float()


def about_z(angle_N: Tensor) -> Tensor:
    """[N, 3, 3]: rotations about the z axis, counter-clockwise, angles in radians."""
    half_N = angle_N / 2
    zero_N = torch.zeros_like(half_N)
    return of_quaternions(torch.stack([half_N.cos(), zero_N, zero_N, half_N.sin()], dim=1))


def of_quaternions(quaternion_N4: Tensor) -> Tensor:
    """[N, 3, 3]: the rotation of each quaternion (real part first), which may have any length but 0.

    Quaternions drawn from a normal distribution give uniform rotations.
    """
    w, x, y, z = (quaternion_N4 / torch.linalg.vector_norm(quaternion_N4, dim=1, keepdim=True)).unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def tilt_of(part: int, degrees: float, seed: int) -> Tensor:
    """[3, 3]: a rotation by `degrees` about a horizontal axis, whose direction depends on seed and part."""
    azimuth = 2 * math.pi * float(torch.rand((), generator=seeded(seed, "tilt", part), dtype=torch.float64))
    half = math.radians(degrees) / 2
    axis = (math.sin(half) * math.cos(azimuth), math.sin(half) * math.sin(azimuth), 0.0)
    return of_quaternions(torch.tensor([[math.cos(half), *axis]], dtype=torch.float64))[0].float()


def turned(point_NP3: Tensor, rotation_N33: Tensor) -> Tensor:
    """Each cloud turned by its rotation."""
    return point_NP3 @ rotation_N33.to(point_NP3).transpose(-1, -2)
