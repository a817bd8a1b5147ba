"""Circuits of qubits in PyTorch: single-qubit rotations, entanglers, layers, partial trace, measurement.

Called by the task's models and by tests. Exact simulation with complex numbers; knows no data, loss or task.

Qubit 0 is the most significant bit of a basis state's index. Rotations are exp(-i angle/2 P) for a Pauli matrix P.

Legend: B batch, N qubits, A = 2^N amplitudes, L layers, S = 2^n states of the n kept qubits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    for qubit in range(gate.shape[-3]):
        entry = gate[..., qubit, :, :, None, None]  # the same for all amplitudes of the other qubits
        off, on = state_BA.unflatten(1, (2**qubit, 2, -1)).unbind(dim=2)
        after = [entry[..., row, 0, :, :] * off + entry[..., row, 1, :, :] * on for row in range(2)]
        state_BA = torch.stack(after, dim=2).flatten(1)
    return state_BA


def product_of(gate_LN22: Tensor) -> Tensor:
    """[L, 2^N, 2^N]: for each layer the Kronecker product of its gates."""
    layers = len(gate_LN22)
    matrix = gate_LN22.new_ones(layers, 1, 1)
    for gate_L22 in gate_LN22.unbind(dim=1):
        size = 2 * matrix.shape[-1]
        product = matrix[:, :, None, :, None] * gate_L22[:, None, :, None, :]
        matrix = product.reshape(layers, size, size)
    return matrix


def after_layers(state_BA: Tensor, angle_LN3: Tensor, perm_A: Tensor) -> Tensor:
    """States [B, A] after all layers: rotations of every qubit, then the entangler.

    The gates of each half of the qubits are one matrix: fewer operations than gate by gate, and smaller matrices
    than for all qubits at once.
    """
    gate_LN22 = rotations(angle_LN3)
    half = (gate_LN22.shape[1] + 1) // 2
    left, right = product_of(gate_LN22[:, :half]), product_of(gate_LN22[:, half:])
    for first, second in zip(left, right, strict=True):
        state = state_BA.unflatten(1, (len(first), -1))
        state = (state @ second.T).mT @ first.T
        state_BA = state.mT.flatten(1)[:, perm_A]
    return state_BA


def reduced(state_BA: Tensor, kept: int) -> Tensor:
    """Density matrices [B, S, S] of the first `kept` qubits: the partial trace over the others."""
    split_BSR = state_BA.unflatten(1, (2**kept, -1))
    # In real numbers: complex products of batches cannot be exported with a free batch size.
    parts = torch.cat([split_BSR.real, split_BSR.imag], dim=2)
    turned = torch.cat([split_BSR.imag, -split_BSR.real], dim=2)
    return torch.complex(parts @ parts.mT, turned @ parts.mT)


def entropy_bits(density_BSS: Tensor) -> Tensor:
    """Von Neumann entropy [B] in bits."""
    value_BS: Tensor = torch.linalg.eigvalsh(density_BSS).clamp_min(0)
    entropy_B: Tensor = -torch.special.xlogy(value_BS, value_BS).sum(dim=-1) / math.log(2)
    return entropy_B
