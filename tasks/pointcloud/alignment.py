"""The aligned layer: neighbours are turned onto the principal axes of the layer's own weights.

The rows of a weight matrix that multiplies coordinates are points of the same space. A layer turns each
neighbourhood by the rotation that takes its principal axes to those of its weights, and then multiplies. Of all
rotations this one gives the largest response (von Neumann's trace inequality), and rotating the input changes
nothing. Nor does rotating the weights: W and WQ are the same layer for every rotation Q, so weights of several
clients must be brought into one position before they are averaged (`closest_rotation`).

Source: the idea of weight-feature alignment for point clouds; the formulas are our own reconstruction.

Legend: K neighbours, C outputs of the layer, ... any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def principal_axes(point_K3: Tensor) -> Tensor:
    """[..., 3, 3]: a rotation whose columns are the principal axes of points [..., K, 3], the longest first.

    Axes of the second moments about the origin. The sum of cubes along each of the first two axes is positive,
    which fixes their signs (zero: left as they are). The third is their cross product, so a mirrored set of points
    has other axes. In float64, without gradients: those of axes are unbounded where two are equally long.
    """
    wide_K3 = point_K3.double()
    moment_33 = wide_K3.transpose(-1, -2) @ wide_K3 / wide_K3.shape[-2]
    axis_33 = torch.linalg.eigh(moment_33).eigenvectors.flip(-1)  # eigh sorts ascending
    cube_3 = (wide_K3 @ axis_33).pow(3).sum(dim=-2)
    sign_3 = torch.where(cube_3 < 0, -1.0, 1.0)
    first_3, second_3 = (axis_33[..., :, i] * sign_3[..., i, None] for i in range(2))
    return torch.stack([first_3, second_3, torch.linalg.cross(first_3, second_3)], dim=-1)


@torch.no_grad()
def closest_rotation(weight_C3: Tensor, target_C3: Tensor) -> Tensor:
    """float64 [3, 3]: the rotation Q with the smallest |weight @ Q - target| (Kabsch, Procrustes in SO(3))."""
    left_33, _, right_33 = torch.linalg.svd(weight_C3.double().T @ target_C3.double())
    mirror_3 = torch.ones(3, dtype=torch.float64, device=weight_C3.device)
    mirror_3[2] = torch.sign(torch.linalg.det(left_33 @ right_33))
    turn_33: Tensor = left_33 * mirror_3 @ right_33
    return turn_33


class AlignedLinear(nn.Module):
    """Responses [..., K, C] of neighbours [..., K, 3], relative to their centre; no bias.

    Args:
        outputs: C.
        align: whether neighbourhoods are turned; otherwise it is a linear layer.
    """

    def __init__(self, outputs: int, *, align: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 3) / 3**0.5)
        self.align = align

    def forward(self, offset_K3: Tensor, axes_33: Tensor | None) -> Tensor:
        """`axes_33` [..., 3, 3]: the principal axes of the neighbourhoods; not used without `align`."""
        if self.align and axes_33 is not None:
            turn_33 = axes_33 @ principal_axes(self.weight).T
            offset_K3 = offset_K3 @ turn_33.to(offset_K3.dtype)
        return offset_K3 @ self.weight.T
