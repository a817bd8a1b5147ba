"""States as coordinates: round trips, the frame of the measurement, Helstrom's bound, refusal of what is no
state.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fednc.common.errors import ProtocolError
from fednc.common.learning.class_memory import ClassSums
from fednc.common.learning.frame import Frame
from fednc.tasks.quantum import states
from fednc.tasks.quantum.circuit import after_layers, entangler, reduced


def drawn_densities(count: int, size: int, seed: int) -> Tensor:
    """Mixed states: mean projectors of a few random pure states, in complex128."""
    drawn = torch.randn(count, 3, size, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pure = torch.nn.functional.normalize(torch.view_as_complex(drawn), dim=-1)
    return (pure[..., :, None] * pure.conj()[..., None, :]).mean(dim=1)


@settings(deadline=None, max_examples=20)
@given(size=st.sampled_from([2, 4, 8]), seed=st.integers(0, 99))
def test_coordinates_are_an_isometry(size: int, seed: int) -> None:
    rho_BSS = drawn_densities(3, size, seed)
    vector_BD = states.coordinates(rho_BSS)
    assert vector_BD.dtype == torch.float64
    assert torch.allclose(states.matrices(vector_BD), rho_BSS)
    traces_BB = torch.einsum("ist,jts->ij", rho_BSS, rho_BSS).real
    assert torch.allclose(vector_BD @ vector_BD.T, traces_BB)
    assert float(vector_BD.norm(dim=1).max()) <= 1 + 1e-12, "features of a class memory lie in the unit ball"


@pytest.mark.parametrize(("classes", "size"), [(2, 2), (3, 4), (4, 4), (10, 16)])
def test_the_centred_measurement_is_a_simplex(classes: int, size: int) -> None:
    frame = Frame.from_tensor(states.targets(classes, size), 0)
    assert (frame.vertices, frame.dim) == (classes, size * size)
    # the vertex nearest to a centred state is the likeliest outcome
    rho_BD = states.coordinates(drawn_densities(20, size, 1)).float()
    by_frame = (rho_BD - states.centre(classes, size)) @ frame.etf_KD.T
    assert torch.equal(by_frame.argmax(dim=1), rho_BD[:, :classes].argmax(dim=1))


def sums_of(rho_BSS: Tensor) -> tuple[Tensor, Tensor]:
    """The class sums that a client would send of these states, all of the first of two classes."""
    size = rho_BSS.shape[-1]
    sums = ClassSums.zeros(2, size * size)
    label_B = torch.zeros(len(rho_BSS), dtype=torch.int64)
    sums.add_batch(states.coordinates(rho_BSS.to(torch.complex64)), label_B)
    return sums.sum_KD, sums.count_K


@settings(deadline=None, max_examples=15)
@given(size=st.sampled_from([2, 16]), count=st.integers(1, 300), seed=st.integers(0, 99))
def test_sums_of_states_pass_and_other_sums_do_not(size: int, count: int, seed: int) -> None:
    sum_KD, count_K = sums_of(drawn_densities(count, size, seed))
    states.check_states(sum_KD, count_K)
    states.check_states(sum_KD * 0, count_K * 0)
    with pytest.raises(ProtocolError, match="trace is not 1"):
        states.check_states(sum_KD * 0.9, count_K)
    worse_KD = sum_KD.clone()
    worse_KD[0, 0] -= 1.1 * count
    worse_KD[0, 1] += 1.1 * count
    with pytest.raises(ProtocolError, match="negative eigenvalue"):
        states.check_states(worse_KD, count_K)


def test_the_mean_of_states_of_many_clients_is_a_state() -> None:
    clients = [sums_of(drawn_densities(20 + seed, 4, seed)) for seed in range(5)]
    total_KD, total_K = (sum(one) for one in zip(*clients, strict=True))
    states.check_states(total_KD, total_K)
    mean_SS = states.matrices(total_KD / total_K.clamp_min(1)[:, None])[0]
    assert torch.allclose(mean_SS, mean_SS.mH)
    assert float(mean_SS.diagonal().real.sum()) == pytest.approx(1, abs=1e-6)
    assert float(torch.linalg.eigvalsh(mean_SS)[0]) >= 0


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), layers=st.integers(1, 6))
def test_no_circuit_beats_helstroms_bound_of_what_was_encoded(seed: int, layers: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.view_as_complex(torch.randn(2, 6, 8, 2, generator=generator))
    pure_2BA = torch.nn.functional.normalize(drawn, dim=-1)
    encoded_2AA = (pure_2BA[..., :, None] * pure_2BA.conj()[..., None, :]).mean(dim=1)
    angle_LN3 = 7 * torch.rand(layers, 3, 3, generator=generator)
    after_2BA = torch.stack([after_layers(one, angle_LN3, entangler("ring", 3)) for one in pure_2BA])
    whole_2AA = (after_2BA[..., :, None] * after_2BA.conj()[..., None, :]).mean(dim=1)
    kept_2SS = torch.stack([reduced(one, 1).mean(dim=0) for one in after_2BA])
    before = states.trace_distance(*encoded_2AA)
    assert states.trace_distance(*whole_2AA) == pytest.approx(before, abs=1e-5), "a circuit keeps the distance"
    assert states.trace_distance(*kept_2SS) <= before + 1e-5, "forgetting qubits cannot raise it"
    success = (kept_2SS[0, 0, 0].real + kept_2SS[1, 1, 1].real) / 2
    assert float(success) <= 1 - states.helstrom_error(*encoded_2AA) + 1e-5
    assert states.helstrom_error(*encoded_2AA) == pytest.approx((1 - before) / 2)


def test_orthogonal_states_are_told_apart_and_equal_ones_by_chance() -> None:
    zero, one = (
        torch.diag(torch.tensor([1.0, 0])).to(torch.complex64),
        torch.diag(torch.tensor([0.0, 1])).to(torch.complex64),
    )
    assert states.helstrom_error(zero, one) == pytest.approx(0)
    assert states.helstrom_error(zero, zero) == pytest.approx(0.5)
    plus = torch.full((2, 2), 0.5, dtype=torch.complex64)
    assert states.helstrom_error(zero, plus) == pytest.approx((1 - math.sqrt(0.5)) / 2, abs=1e-6)
