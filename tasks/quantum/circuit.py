"""Circuits of qubits in PyTorch: single-qubit rotations, entanglers, layers, partial trace, measurement.

Called by the task's models and by tests. Exact simulation with complex numbers; knows no data, loss or task.

Qubit 0 is the most significant bit of a basis state's index. Rotations are exp(-i angle/2 P) for a Pauli matrix P.

Legend: B batch, N qubits, A = 2^N amplitudes, L layers, S = 2^n states of the n kept qubits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DENSE_QUBITS = 8  # up to here a block of layers is one matrix; beyond, gates are applied to the batch one by one


def rotation_y(angle: Tensor) -> Tensor:
    """Real gates [..., 2, 2] as complex numbers, for angles [...]."""
    cos, sin = (angle / 2).cos(), (angle / 2).sin()
    gate = torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)
    return torch.complex(gate, torch.zeros_like(gate))


def rotation_z(angle: Tensor) -> Tensor:
    """Diagonal gates [..., 2, 2] for angles [...]."""
    phase = torch.polar(torch.ones_like(angle), angle / 2)
    zero = torch.zeros_like(phase)
    return torch.stack([torch.stack([phase.conj(), zero], dim=-1), torch.stack([zero, phase], dim=-1)], dim=-2)


def rotations(angle_LN3: Tensor) -> Tensor:
    """RZ RY RZ for each layer and qubit, [L, N, 2, 2]; the last angle belongs to the gate that acts first."""
    outer, middle, inner = angle_LN3.unbind(dim=-1)
    return rotation_z(outer) @ rotation_y(middle) @ rotation_z(inner)


def entangler(kind: str, qubits: int) -> Tensor:
    """int64 [A]: CNOTs q -> q+1 for all q as a permutation: amplitude i after them is amplitude perm[i] before.

    Args:
        kind: `ring` has a last CNOT from the last qubit to the first one; `chain` has not.
    """
    controls = range(qubits if kind == "ring" and qubits > 1 else qubits - 1)
    index_A = torch.arange(2**qubits)
    for control in reversed(controls):  # from the last CNOT back to the first
        target = (control + 1) % qubits
        is_set_A = (index_A >> (qubits - 1 - control)) & 1
        index_A = index_A ^ (is_set_A << (qubits - 1 - target))
    return index_A


def on_qubits(state_BA: Tensor, gate: Tensor) -> Tensor:
    """States [B, A] after one gate on every qubit: gates [N, 2, 2], or [B, N, 2, 2] with gates of each state."""
    batch, qubits = len(state_BA), gate.shape[-3]
    for qubit in range(qubits):
        one = gate[..., qubit, :, :].unsqueeze(-3)  # broadcast over the qubits before this one
        state_BA = (one @ state_BA.reshape(batch, 2**qubit, 2, -1)).reshape(batch, -1)
    return state_BA


def layers_matrix(angle_LN3: Tensor, perm_A: Tensor) -> Tensor:
    """[A, A]: the product of all layers, the first layer acting first."""
    gate_LN22 = rotations(angle_LN3)
    layers, qubits = gate_LN22.shape[:2]
    matrix_LAA = gate_LN22[:, 0]
    for qubit in range(1, qubits):  # the Kronecker product of the qubits' gates
        size = 2 * matrix_LAA.shape[-1]
        product = matrix_LAA[:, :, None, :, None] * gate_LN22[:, qubit, None, :, None, :]
        matrix_LAA = product.reshape(layers, size, size)
    matrix_LAA = matrix_LAA[:, perm_A]
    while len(matrix_LAA) > 1:  # neighbours in pairs: few large products instead of many small ones
        even = len(matrix_LAA) // 2 * 2
        matrix_LAA = torch.cat([matrix_LAA[1:even:2] @ matrix_LAA[:even:2], matrix_LAA[even:]])
    return matrix_LAA[0]


def after_layers(state_BA: Tensor, angle_LN3: Tensor, perm_A: Tensor) -> Tensor:
    """States [B, A] after all layers: rotations of every qubit, then the entangler."""
    if angle_LN3.shape[1] <= DENSE_QUBITS:
        return state_BA @ layers_matrix(angle_LN3, perm_A).T
    for gate_N22 in rotations(angle_LN3):
        state_BA = on_qubits(state_BA, gate_N22)[:, perm_A]
    return state_BA


def reduced(state_BA: Tensor, kept: int) -> Tensor:
    """Density matrices [B, S, S] of the first `kept` qubits: the partial trace over the others."""
    split_BSR = state_BA.reshape(len(state_BA), 2**kept, -1)
    return split_BSR @ split_BSR.mH


def entropy_bits(density_BSS: Tensor) -> Tensor:
    """Von Neumann entropy [B] in bits."""
    value_BS = torch.linalg.eigvalsh(density_BSS).clamp_min(0)
    return -torch.special.xlogy(value_BS, value_BS).sum(dim=-1) / math.log(2)
