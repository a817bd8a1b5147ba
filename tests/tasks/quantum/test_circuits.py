"""Circuits: exact against dense matrices, unitary, differentiable as nature would measure it, with known
entropies.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednc.tasks.quantum import encodings
from fednc.tasks.quantum.circuit import (
    after_layers,
    entangler,
    entropy_bits,
    on_qubits,
    reduced,
    rotation_y,
    rotation_z,
    rotations,
)

KINDS = ("ring", "chain")


def drawn_angles(layers: int, qubits: int, seed: int) -> Tensor:
    return 2 * math.pi * torch.rand(layers, qubits, 3, generator=torch.Generator().manual_seed(seed))


def drawn_states(count: int, qubits: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(count, 2**qubits, 2, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(torch.view_as_complex(drawn), dim=1)


def dense_cnot(qubits: int, control: int, target: int) -> Tensor:
    """|0><0| x 1 + |1><1| x X, as a product over the qubits: nothing of the permutation."""
    one, flip = torch.eye(2), torch.tensor([[0.0, 1], [1, 0]])
    off, on = torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[0.0, 0], [0, 1]])
    terms = []
    for projector, act in ((off, one), (on, flip)):
        factors = [projector if q == control else act if q == target else one for q in range(qubits)]
        term = torch.ones(1, 1)
        for factor in factors:
            term = torch.kron(term, factor)
        terms.append(term)
    return terms[0] + terms[1]


def dense_unitary(angle_LN3: Tensor, kind: str) -> Tensor:
    """The circuit as one matrix, from exponentials of Pauli matrices and Kronecker products, in float64."""
    paulis = {"y": torch.tensor([[0, -1j], [1j, 0]]), "z": torch.tensor([[1, 0j], [0, -1]])}
    layers, qubits = angle_LN3.shape[:2]
    whole = torch.eye(2**qubits, dtype=torch.complex128)

    def turn(axis: str, angle: float) -> Tensor:
        return torch.linalg.matrix_exp(-0.5j * angle * paulis[axis].to(torch.complex128))

    for layer in range(layers):
        gates = torch.ones(1, 1, dtype=torch.complex128)
        for outer, middle, inner in angle_LN3[layer].double().tolist():
            gates = torch.kron(gates, turn("z", outer) @ turn("y", middle) @ turn("z", inner))
        whole = gates @ whole
        for control in range(qubits if kind == "ring" else qubits - 1):
            whole = dense_cnot(qubits, control, (control + 1) % qubits).to(torch.complex128) @ whole
    return whole


@settings(deadline=None, max_examples=12)
@given(qubits=st.integers(2, 5), layers=st.integers(1, 4), kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_a_circuit_equals_its_dense_matrix_and_keeps_lengths(
    qubits: int, layers: int, kind: str, seed: int
) -> None:
    angle_LN3, state_BA = drawn_angles(layers, qubits, seed), drawn_states(3, qubits, seed)
    found_BA = after_layers(state_BA, angle_LN3, entangler(kind, qubits))
    expected_BA = state_BA.to(torch.complex128) @ dense_unitary(angle_LN3, kind).T
    assert torch.allclose(found_BA.to(torch.complex128), expected_BA, atol=1e-5)
    assert torch.allclose(found_BA.norm(dim=1), torch.ones(3), atol=1e-5)
    unitary_AA = after_layers(torch.eye(2**qubits, dtype=torch.complex64), angle_LN3, entangler(kind, qubits))
    assert torch.allclose(unitary_AA @ unitary_AA.mH, torch.eye(2**qubits, dtype=torch.complex64), atol=1e-5)


def test_long_circuits_of_many_qubits_stay_exact() -> None:
    state_BA, angle_LN3 = drawn_states(2, 9), drawn_angles(60, 9, 3)
    found_BA = after_layers(state_BA, angle_LN3, entangler("ring", 9))
    assert torch.allclose(found_BA.norm(dim=1), torch.ones(2), atol=1e-5)
    exact_BA = after_layers(state_BA.to(torch.complex128), angle_LN3.double(), entangler("ring", 9))
    assert torch.allclose(found_BA.to(torch.complex128), exact_BA, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_entangler_is_the_product_of_its_cnots(kind: str) -> None:
    whole = torch.eye(8)
    for control in range(3 if kind == "ring" else 2):
        whole = dense_cnot(3, control, (control + 1) % 3) @ whole
    assert torch.equal(torch.eye(8)[:, :][entangler(kind, 3)], whole)


def test_gates_on_qubits_are_the_same_one_by_one_and_for_each_state() -> None:
    angle_BN = 7 * torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    state_BA = drawn_states(4, 3)
    together = on_qubits(state_BA, rotation_y(angle_BN))
    alone = torch.cat([on_qubits(state_BA[i : i + 1], rotation_y(angle_BN[i])) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-6)
    product = torch.kron(torch.kron(*rotation_y(angle_BN[0, :2])), rotation_y(angle_BN[0, 2]))
    assert torch.allclose(together[0], product @ state_BA[0], atol=1e-6)


def test_a_rotation_is_rz_ry_rz() -> None:
    outer, middle, inner = torch.tensor([0.3, 1.2, -0.7])
    expected = rotation_z(outer) @ rotation_y(middle) @ rotation_z(inner)
    assert torch.allclose(rotations(torch.tensor([[[0.3, 1.2, -0.7]]]))[0, 0], expected)


def test_bell_and_ghz_states_have_one_bit_of_entropy() -> None:
    for qubits in (2, 4):
        half_turn = torch.zeros(qubits)
        half_turn[0] = math.pi / 2  # |0> to (|0> + |1>) / sqrt 2, on the first qubit
        state_BA = encodings.basis(torch.zeros(1, qubits))
        state_BA = on_qubits(state_BA, rotation_y(half_turn))[:, entangler("chain", qubits)]
        assert state_BA[0, [0, -1]].abs().tolist() == pytest.approx([math.sqrt(0.5)] * 2, abs=1e-6)
        assert float(entropy_bits(reduced(state_BA, 1))) == pytest.approx(1, abs=1e-5)
    assert float(entropy_bits(reduced(encodings.basis(torch.ones(1, 3)), 1))) == pytest.approx(0, abs=1e-5)


def test_the_gradient_is_that_of_the_parameter_shift_rule() -> None:
    angle_LN3 = drawn_angles(2, 3, 5).double().requires_grad_()
    state_BA, perm_A = drawn_states(2, 3).to(torch.complex128), entangler("ring", 3)

    def measured(angles: Tensor) -> Tensor:
        return reduced(after_layers(state_BA, angles, perm_A), 1)[:, 0, 0].real.sum()

    (gradient,) = torch.autograd.grad(measured(angle_LN3), angle_LN3)
    for place in range(angle_LN3.numel()):
        shift = torch.zeros(angle_LN3.numel(), dtype=torch.float64)
        shift[place] = math.pi / 2
        moved = shift.reshape(angle_LN3.shape)
        by_shift = (measured(angle_LN3.detach() + moved) - measured(angle_LN3.detach() - moved)) / 2
        assert float(gradient.flatten()[place]) == pytest.approx(float(by_shift), abs=1e-10)


@settings(deadline=None, max_examples=10)
@given(kept=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_reduced_state_is_a_state_and_its_probabilities_are_all(kept: int, seed: int) -> None:
    state_BA = drawn_states(4, 4, seed)
    rho_BSS = reduced(state_BA, kept)
    assert torch.allclose(rho_BSS, rho_BSS.mH, atol=1e-6)
    assert float(torch.linalg.eigvalsh(rho_BSS).min()) > -1e-6
    share_BS = rho_BSS.diagonal(dim1=1, dim2=2).real
    assert torch.allclose(share_BS.sum(dim=1), torch.ones(4), atol=1e-5)
    by_outcome = state_BA.abs().square().reshape(4, 2**kept, -1).sum(dim=2)
    assert torch.allclose(share_BS, by_outcome, atol=1e-6)


def test_encodings_have_length_one_and_mean_what_they_say() -> None:
    assert torch.equal(encodings.basis(torch.tensor([[1.0, 0, 1]])).real.nonzero(), torch.tensor([[0, 5]]))
    value_BF = torch.tensor([[3.0, 0, 4], [0, 0, 0]])
    assert torch.allclose(
        encodings.amplitude(value_BF, 2).real, torch.tensor([[0.6, 0, 0.8, 0], [1, 0, 0, 0]]), atol=1e-6
    )
    angle_BF = torch.rand(3, 5, generator=torch.Generator().manual_seed(2))
    state_BA = encodings.angle(angle_BF, 2, 4, entangler("ring", 2))
    assert torch.allclose(state_BA.norm(dim=1), torch.ones(3), atol=1e-5)
    turned = encodings.angle(math.pi * torch.tensor([[1.0, 0]]), 2, 1, torch.arange(4))
    assert torch.allclose(turned.abs(), encodings.basis(torch.tensor([[1.0, 0]])).abs(), atol=1e-6)


@pytest.mark.parametrize("power", [-140, -100, -70, -3, 0, 3, 64, 100, 126])
def test_amplitudes_do_not_depend_on_the_scale_of_the_values(power: int) -> None:
    """Down to values that are not normal numbers any more; scaled by a power of two not even in the last bit."""
    value_BF = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    state_BA = encodings.amplitude(value_BF, 3)
    scaled_BF = torch.ldexp(torch.ldexp(value_BF, torch.tensor(power // 2)), torch.tensor(power - power // 2))
    found_BA = encodings.amplitude(scaled_BF, 3)
    if power > -100:
        assert torch.equal(found_BA, state_BA)
    assert torch.allclose(found_BA, state_BA, atol=1e-2)
    assert torch.allclose(found_BA.abs().square().sum(dim=1), torch.ones(50), atol=1e-5)


def test_amplitudes_of_ordinary_values_are_these_divided_by_their_length_bit_for_bit() -> None:
    """Results were measured so."""
    value_BF = (
        torch.randn(200, 64, generator=torch.Generator().manual_seed(4)) * torch.logspace(-6, 6, 200)[:, None]
    )
    plain_BF = value_BF / torch.linalg.vector_norm(value_BF, dim=1).clamp_min(1e-20)[:, None]
    assert torch.equal(encodings.amplitude(value_BF, 6).real, plain_BF)


def test_deep_encodings_of_random_data_make_all_states_equally_far_apart() -> None:
    """As far as random states: then classes cannot be told from one another."""
    value_BF = 2 * math.pi * torch.rand(160, 60, generator=torch.Generator().manual_seed(0))
    state_BA = encodings.angle(value_BF, 6, 20, entangler("ring", 6))
    overlap_BB = (state_BA @ state_BA.mH).abs().square()
    off = overlap_BB[~torch.eye(160, dtype=torch.bool)]
    assert float(off.mean()) == pytest.approx(2.0**-6, rel=0.1)


def test_pennylane_gives_the_same_states() -> None:
    """An independent simulator, where it is installed."""
    qml = pytest.importorskip("pennylane")
    angle_LN3 = drawn_angles(3, 4, 8)

    @qml.qnode(qml.device("default.qubit", wires=4))
    def circuit() -> object:
        qml.BasisState([1, 0, 1, 1], wires=range(4))
        for layer in angle_LN3.tolist():
            for qubit, (outer, middle, inner) in enumerate(layer):
                qml.Rot(inner, middle, outer, wires=qubit)
            for qubit in range(4):
                qml.CNOT(wires=[qubit, (qubit + 1) % 4])
        return qml.state()

    found_BA = after_layers(encodings.basis(torch.tensor([[1.0, 0, 1, 1]])), angle_LN3, entangler("ring", 4))
    expected = torch.as_tensor(circuit()).to(torch.complex64)
    assert torch.allclose(found_BA[0], expected, atol=1e-5)
