"""Encodings: how an example becomes the state that a circuit starts from.

Called by the task's circuit. Nothing here is trained. Knows no task.

Legend: B batch, F values of an example, N qubits, A = 2^N amplitudes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fednc.tasks.quantum.circuit import on_qubits, rotation_y, rotation_z

_MOST_POWER = 126  # of two, so that its inverse is a normal float32 too


def basis(value_BF: Tensor) -> Tensor:
    """The basis state whose bits are the values (0 or 1), [B, A] with N = F."""
    place_F = 2 ** torch.arange(value_BF.shape[1] - 1, -1, -1, device=value_BF.device)
    index_B = (value_BF.round().long() * place_F).sum(dim=1)
    number_A = torch.arange(2 ** value_BF.shape[1], device=value_BF.device)
    return (index_B[:, None] == number_A).to(_complex(value_BF))


def amplitude(value_BF: Tensor, qubits: int) -> Tensor:
    """The values as amplitudes, divided by their length and filled up with zeros, [B, A].

    An example without any value other than 0 has no direction; it becomes the first basis state.
    """
    value_BA = torch.nn.functional.pad(_near_one(value_BF), (0, 2**qubits - value_BF.shape[1]))
    length_B = torch.linalg.vector_norm(value_BA, dim=1)
    first_BA = torch.zeros_like(value_BA)
    first_BA[:, 0] = 1
    unit_BA = torch.where(length_B[:, None] > 0, value_BA / length_B.clamp_min(1e-20)[:, None], first_BA)
    return unit_BA.to(_complex(value_BF))


def _near_one(value_BF: Tensor) -> Tensor:
    """Rows times powers of two, which change no digit, so that no square overflows or vanishes."""
    largest_B1 = value_BF.detach().abs().amax(dim=1, keepdim=True)
    power_B1 = torch.frexp(largest_B1).exponent.clamp(-_MOST_POWER, _MOST_POWER)
    return torch.ldexp(value_BF, -power_B1)


def angle(value_BF: Tensor, qubits: int, uploads: int, perm_A: Tensor) -> Tensor:
    """The values as angles: each upload rotates every qubit by a value and entangles, [B, A].

    The first, third, ... upload rotates about y, the others about z. The values are used N at a time, and again
    from the start when they run out (data re-uploading). If there are more values than `uploads` N, the last are
    unused.
    """
    groups = -(-value_BF.shape[1] // qubits)
    value_BGN = torch.nn.functional.pad(value_BF, (0, groups * qubits - value_BF.shape[1])).unflatten(
        1, (groups, qubits)
    )
    state_BA = basis(torch.zeros_like(value_BF[:, :1]).expand(-1, qubits))
    for upload in range(uploads):
        rotate = rotation_z if upload % 2 else rotation_y
        state_BA = on_qubits(state_BA, rotate(value_BGN[:, upload % groups]))[:, perm_A]
    return state_BA


def _complex(value: Tensor) -> torch.dtype:
    return torch.complex128 if value.dtype == torch.float64 else torch.complex64
