"""Density matrices as real vectors, the targets of the measurement, the check of states from clients, Helstrom's
bound.

Called by the task, on clients and server. Knows no circuit and no model.

A Hermitian matrix is written as S^2 real coordinates: its diagonal, then sqrt(2) times real and imaginary parts
above the diagonal. So every vector stands for a Hermitian matrix, and Tr(A B) is the dot product of the
coordinates.

Legend: B batch, S states of the measured qubits, D = S^2 coordinates, K classes (K <= S).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fednc.common.learning.frame import unit
from fednc.common.tasks.metrics import refuse_unless

_ROOT_2 = math.sqrt(2)
# Coordinates are sent rounded to multiples of 2^-24 and computed in float32; an honest sum may be off by this much
# per example and coordinate.
_SLACK = 1e-5


def coordinates(matrix_BSS: Tensor) -> Tensor:
    """[..., D] of Hermitian matrices [..., S, S]."""
    size = matrix_BSS.shape[-1]
    above, right = torch.triu_indices(size, size, offset=1, device=matrix_BSS.device)
    upper = _ROOT_2 * matrix_BSS[..., above, right]
    return torch.cat([matrix_BSS.diagonal(dim1=-2, dim2=-1).real, upper.real, upper.imag], dim=-1)


def matrices(vector_BD: Tensor) -> Tensor:
    """Hermitian matrices [..., S, S] of coordinates [..., D]."""
    size = math.isqrt(vector_BD.shape[-1])
    above, right = torch.triu_indices(size, size, offset=1, device=vector_BD.device)
    diagonal, real, imaginary = vector_BD.split([size, len(above), len(above)], dim=-1)
    upper = torch.complex(real, imaginary) / _ROOT_2
    matrix = torch.diag_embed(torch.complex(diagonal, torch.zeros_like(diagonal)))
    matrix[..., above, right] = upper
    matrix[..., right, above] = upper.conj()
    return matrix


def centre(classes: int, size: int) -> Tensor:
    """[D]: the mean of the measurement operators |k><k| of the classes."""
    return torch.cat([torch.full((classes,), 1 / classes), torch.zeros(size * size - classes)])


def targets(classes: int, size: int) -> Tensor:
    """[K, D]: the operators |k><k| minus their mean, with length 1. They form a simplex ETF."""
    return unit(torch.eye(classes, size * size) - centre(classes, size))


def check_states(sum_KD: Tensor, count_K: Tensor) -> None:
    """Refuse sums that no states have: Hermitian they always are, but traces and eigenvalues may be wrong.

    Args:
        sum_KD: float64 sums of the coordinates of each class's states.
        count_K: number of states in each sum.

    Raises:
        ProtocolError: a trace is not the number of states, or an eigenvalue is negative.
    """
    size = math.isqrt(sum_KD.shape[1])
    slack_K = _SLACK * (1 + count_K.double()) * size
    trace_K = sum_KD[:, :size].sum(dim=1)
    refuse_unless(bool(((trace_K - count_K).abs() <= slack_K).all()), "a mean state whose trace is not 1")
    least_K = torch.linalg.eigvalsh(matrices(sum_KD.double()))[:, 0]
    refuse_unless(bool((least_K >= -slack_K).all()), "a mean state with a negative eigenvalue")


def trace_distance(one_SS: Tensor, other_SS: Tensor) -> float:
    """1/2 |A - B|_1, from 0 (the same state) to 1 (orthogonal states)."""
    return float(torch.linalg.eigvalsh(one_SS - other_SS).abs().sum() / 2)


def helstrom_error(one_SS: Tensor, other_SS: Tensor) -> float:
    """The least error with which any measurement tells two equally likely states apart (Helstrom 1969)."""
    return (1 - trace_distance(one_SS, other_SS)) / 2
