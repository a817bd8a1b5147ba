"""Line art of a colour picture: a sharpened difference of Gaussians, for pictures that come without lines.

    d = p (G(sigma) - G(k sigma))      of red, green and blue, 0 to 1
    line = 1 where d >= -e, else 1 + tanh(phi (d + e)); of the three channels the darkest line

Like XDoG, but of the difference alone, so that a dark area is paper too and only its border is a line; and of each
channel, so that two colours of one brightness have a line between them. After
Winnemoeller, Kyprianidis, Olsen: XDoG (Computers & Graphics 2012). Called by readers; white paper, dark lines.

Legend: N pictures, H height, W width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA, WIDER, SHARPNESS, LEVEL, STEEPNESS = 0.6, 1.6, 12.0, 0.3, 4.0  # sigma in pixels, k, p, e, phi
_AT_ONCE = 64  # pictures, which bounds memory


def lines_of(pixel_N3HW: Tensor) -> Tensor:
    """uint8 [N, 1, H, W] of uint8 [N, 3, H, W]."""
    return torch.cat([_lines(part) for part in pixel_N3HW.split(_AT_ONCE)])


def _lines(pixel_N3HW: Tensor) -> Tensor:
    unit = (pixel_N3HW.float() / 255).flatten(0, 1)[:, None]
    change = SHARPNESS * (blurred(unit, SIGMA) - blurred(unit, WIDER * SIGMA))
    line = torch.where(change >= -LEVEL, 1.0, 1 + (STEEPNESS * (change + LEVEL)).tanh())
    darkest_N1HW = line.reshape(pixel_N3HW.shape).amin(dim=1, keepdim=True)
    return (darkest_N1HW.clamp(0, 1) * 255).round().to(torch.uint8)


def blurred(value_N1HW: Tensor, sigma: float) -> Tensor:
    """Gaussian blur; the border is repeated outside."""
    reach = math.ceil(3 * sigma)
    weight_K = gaussian(reach, sigma).to(value_N1HW)
    padded = F.pad(value_N1HW, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, weight_K[None, None, None]), weight_K[None, None, :, None])


def gaussian(reach: int, sigma: float) -> Tensor:
    """float64 [2 reach + 1]: weights that add up to 1."""
    step_K = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weight_K = (-0.5 * (step_K / sigma).square()).exp()
    return weight_K / weight_K.sum()
