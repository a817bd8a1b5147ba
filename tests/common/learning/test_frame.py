"""The frame: geometry for many shapes, refusal of invalid frames, digests, safe normalisation.

Legend: K vertices, D feature width, B batch.
"""

from __future__ import annotations

import hashlib
import re
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from fednc.common.errors import ConfigError, ProtocolError
from fednc.common.learning.frame import Frame, draw_frame, frame_digest, unit

SHAPES = st.integers(2, 40).flatmap(
    lambda k: st.tuples(st.just(k), st.one_of(st.just(k - 1), st.just(k), st.integers(k, 96)))
)
SEEDS = st.integers(0, 2**32)


@settings(max_examples=60, deadline=None)
@given(SHAPES, SEEDS)
def test_rows_are_unit_equiangular_and_sum_to_zero(shape, seed):
    vertices, dim = shape
    etf_KD = draw_frame(vertices, dim, seed).etf_KD
    assert (etf_KD.shape, etf_KD.dtype) == (torch.Size(shape), torch.float32)
    gram_KK = etf_KD.double() @ etf_KD.double().T
    wanted_KK = torch.full_like(gram_KK, -1 / (vertices - 1)).fill_diagonal_(1.0)
    torch.testing.assert_close(gram_KK, wanted_KK, atol=2e-6, rtol=0)
    torch.testing.assert_close(etf_KD.sum(dim=0), torch.zeros(dim), atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 9), SEEDS)
def test_orthogonal_targets_are_the_same_draw_without_centring(vertices, spare, seed):
    orthogonal_KD = draw_frame(vertices, vertices + spare, seed, "orthogonal").etf_KD
    torch.testing.assert_close(orthogonal_KD @ orthogonal_KD.T, torch.eye(vertices), atol=2e-6, rtol=0)
    centred_KD = orthogonal_KD - orthogonal_KD.mean(dim=0)
    simplex_KD = draw_frame(vertices, vertices + spare, seed).etf_KD
    torch.testing.assert_close(unit(centred_KD), simplex_KD, atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 30), SEEDS, st.data())
def test_any_subset_keeps_its_angles(vertices, seed, data):
    rows = data.draw(st.lists(st.integers(0, vertices - 1), min_size=2, unique=True))
    subset_PD = draw_frame(vertices, vertices + 5, seed).etf_KD[rows]
    off_diagonal = (subset_PD @ subset_PD.T)[~torch.eye(len(rows), dtype=torch.bool)]
    torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, -1 / (vertices - 1)), atol=2e-6, rtol=0)


@pytest.mark.parametrize("dim", [9, 10, 64])
def test_no_vertex_prefers_the_positive_orthant(dim):
    """The reason for a Gaussian draw: a uniform one puts vertex 0 at cosine -0.8 to the all-ones vector."""
    ones = torch.ones(dim) / dim**0.5
    cosine_SK = torch.stack([draw_frame(10, dim, seed).etf_KD @ ones for seed in range(200)])
    assert cosine_SK.mean(dim=0).abs().max() < 5 / (200 * dim) ** 0.5


@pytest.mark.parametrize("dim", [4, 5, 12])
def test_the_seed_decides_the_draw(dim):
    first, again, other = (draw_frame(5, dim, seed) for seed in (1, 1, 2))
    assert torch.equal(first.etf_KD, again.etf_KD)
    assert first.digest == again.digest != other.digest


def test_orthogonal_targets_need_one_dimension_each():
    with pytest.raises(ConfigError, match="at least 10"):
        draw_frame(10, 9, 0, "orthogonal")


@pytest.mark.parametrize(("vertices", "dim"), [(10, 8), (3, 1), (100, 64)])
def test_the_error_about_a_narrow_frame_names_the_numbers(vertices, dim):
    with pytest.raises(ConfigError, match=rf"frame\.dim = {dim} .*{vertices} vertices.*at least {vertices - 1}"):
        draw_frame(vertices, dim, 0)


def test_one_class_has_no_frame():
    with pytest.raises(ConfigError, match="at least 2 vertices, but got 1"):
        draw_frame(1, 8, 0)


def test_from_tensor_gives_the_same_frame():
    drawn = draw_frame(10, 32, seed=3)
    received = Frame.from_tensor(drawn.etf_KD.clone(), seed=3, digest=drawn.digest)
    assert torch.equal(received.etf_KD, drawn.etf_KD)
    assert (received.vertices, received.dim, received.seed) == (10, 32, 3)


def test_the_digest_is_that_of_the_documented_bytes():
    etf_KD = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    data = struct.pack("<4f", 1, 0, -1, 0) + struct.pack("<2q", 2, 2)
    assert frame_digest(etf_KD) == hashlib.sha256(data).hexdigest()
    assert frame_digest(etf_KD.T.contiguous().T) == frame_digest(etf_KD)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda etf: etf * 1.001,
        lambda etf: etf + 1e-4 * torch.eye(*etf.shape),
        lambda etf: etf.index_fill(0, torch.tensor([2]), torch.nan),
        lambda etf: torch.cat([etf[:1], etf[:-1]]),
        lambda etf: etf[:-1],
        lambda etf: etf.double(),
        lambda etf: etf[0],
    ],
    ids=["longer", "bent", "nan", "twice", "subset", "float64", "vector"],
)
def test_from_tensor_refuses_invalid_frames(spoil):
    with pytest.raises(ProtocolError, match="frame"):
        Frame.from_tensor(spoil(draw_frame(6, 16, seed=0).etf_KD), seed=0)


def test_from_tensor_refuses_another_frame():
    announced, sent = draw_frame(6, 16, seed=0).digest, draw_frame(6, 16, seed=1)
    with pytest.raises(ProtocolError, match=f"{sent.digest}.*{announced}"):
        Frame.from_tensor(sent.etf_KD, seed=0, digest=announced)
    assert re.fullmatch("[0-9a-f]{64}", announced)


def test_unit_rows():
    feat_BD = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 100
    torch.testing.assert_close(torch.linalg.vector_norm(unit(feat_BD), dim=1), torch.ones(5))
    torch.testing.assert_close(unit(feat_BD), unit(feat_BD * 3))
    assert gradcheck(unit, feat_BD.double().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unit_of_half_precision_is_unit_in_float32(dtype):
    feat_BD = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    norm_B = torch.linalg.vector_norm(unit(feat_BD), dim=1)
    torch.testing.assert_close(norm_B, torch.ones(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [0.0, 1e-9])
def test_a_feature_without_direction_is_zero_with_zero_gradient(size):
    feat_BD = torch.tensor([[size, 0.0], [3.0, 4.0]], requires_grad=True)
    out_BD = unit(feat_BD)
    (gradient_BD,) = torch.autograd.grad(out_BD[:, 1].sum(), feat_BD)
    assert torch.equal(out_BD[0], torch.zeros(2))
    assert torch.equal(gradient_BD[0], torch.zeros(2))
    assert gradient_BD[1].any()


def test_nan_stays_visible():
    assert unit(torch.tensor([[torch.nan, 1.0]])).isnan().all()
