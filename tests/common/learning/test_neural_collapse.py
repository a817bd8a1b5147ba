"""Neural-collapse metrics: zero at collapse, equal to their definition elsewhere, with the right invariances.

Legend: N examples, K label space, D feature width, P present classes.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.learning.frame import draw_frame
from fednc.common.learning.neural_collapse import METRICS, alignment, collapse

K, D, PER_CLASS = 6, 12, 15
ETF_KD = draw_frame(K, D, seed=0).etf_KD.double()
LABEL_N = torch.arange(K).repeat(PER_CLASS)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def features(noise: float, seed: int = 0) -> torch.Tensor:
    return 2 * ETF_KD[LABEL_N] + 0.7 + noise * normal(len(LABEL_N), D, seed=seed)


def rotation(seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(D, D, seed=seed))[0]


def plain_nc1(feat_ND: torch.Tensor, label_N: torch.Tensor) -> float:
    """tr(S_W pinv(S_B)) / K, as in the papers; balanced classes."""
    mean_KD = torch.stack([feat_ND[label_N == c].mean(dim=0) for c in range(K)])
    within, between = feat_ND - mean_KD[label_N], mean_KD - feat_ND.mean(dim=0)
    s_w, s_b = within.T @ within / len(feat_ND), between.T @ between / K
    return (torch.trace(s_w @ torch.linalg.pinv(s_b, rtol=1e-9)) / K).item()


def test_perfect_collapse_is_zero():
    metrics = collapse(features(0.0), LABEL_N, ETF_KD, K)
    assert tuple(metrics) == METRICS
    assert metrics.pop("nc3_cos") == pytest.approx(1)
    assert metrics == pytest.approx(dict.fromkeys(metrics, 0.0), abs=1e-6)


def test_nc1_is_the_textbook_trace():
    feat_ND = normal(len(LABEL_N), D) + 0.5 * ETF_KD[LABEL_N]
    assert collapse(feat_ND, LABEL_N, ETF_KD, K)["nc1"] == pytest.approx(plain_nc1(feat_ND, LABEL_N), rel=1e-9)


def test_nc1_grows_with_the_square_of_the_spread():
    small, large = (collapse(features(noise), LABEL_N, ETF_KD, K)["nc1"] for noise in (1e-3, 1e-2))
    assert large == pytest.approx(100 * small, rel=0.05)


def test_nc2_by_hand_for_three_means_on_a_line():
    feat_ND = torch.tensor([[-1.0, 0], [0, 0], [1, 0]]).repeat(2, 1)
    metrics = collapse(feat_ND, torch.arange(3).repeat(2), draw_frame(3, 2, 0).etf_KD, 3)
    gram = torch.tensor([[1.0, 0, -1], [0, 0, 0], [-1, 0, 1]]) / 2
    assert metrics["nc2"] == pytest.approx((gram - (torch.eye(3) - 1 / 3) / 2**0.5).norm().item())
    assert metrics["nc2_norm"] == pytest.approx(math.sqrt(2) / 2)
    assert metrics["nc2_angle"] == pytest.approx((0.5 + 0.5 + 0.5) / 3)
    assert metrics["nc1"] == pytest.approx(0)


def test_rotating_features_away_from_the_frame_changes_only_nc3_and_nc4():
    turned = collapse(features(0.0) @ rotation(1), LABEL_N, ETF_KD, K)
    assert [turned["nc1"], turned["nc2"], turned["nc2_norm"], turned["nc2_angle"]] == pytest.approx(
        [0] * 4, abs=1e-6
    )
    assert turned["nc3"] > 0.5
    assert turned["nc3_cos"] < 0.5
    swapped = collapse(features(0.0), LABEL_N, ETF_KD[[1, 0, 2, 3, 4, 5]], K)
    assert swapped["nc4"] == pytest.approx(2 / K)
    opposite = collapse(features(0.0), LABEL_N, -ETF_KD, K)
    assert (opposite["nc3"], opposite["nc3_cos"]) == pytest.approx((2, -1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(K)))
def test_rotation_permutation_and_scale_change_nothing(seed, order):
    feat_ND, turn_DD, order_K = features(0.8, seed), rotation(seed), torch.tensor(order)
    plain = collapse(feat_ND, LABEL_N, ETF_KD, K)
    changed = collapse(3 * feat_ND @ turn_DD, order_K[LABEL_N], (ETF_KD @ turn_DD)[order_K.argsort()], K)
    assert changed == pytest.approx(plain, rel=1e-6, abs=1e-9)
    assert plain["nc1"] > 0.01


def test_a_subset_of_classes_at_collapse_is_collapsed():
    """Classes without examples, and vertices reserved for later classes, are left out."""
    keep_N = (LABEL_N == 1) | (LABEL_N == 3) | (LABEL_N == 5)
    metrics = collapse(features(0.0)[keep_N], LABEL_N[keep_N], ETF_KD, K)
    assert metrics["nc2"] == pytest.approx(0, abs=1e-6)
    assert metrics["nc3"] == pytest.approx(0, abs=1e-6)
    assert metrics["nc4"] == 0


def test_labels_beyond_todays_classes_are_left_out():
    feat_ND, today_N = features(0.5), LABEL_N < 4
    wanted = collapse(feat_ND[today_N], LABEL_N[today_N], ETF_KD[:4], 4)
    assert collapse(feat_ND, LABEL_N, ETF_KD, 4) == pytest.approx(wanted)


def test_class_frequencies_do_not_move_the_geometry():
    often_N = torch.cat([LABEL_N, torch.zeros(500, dtype=torch.int64)])
    metrics = collapse(2 * ETF_KD[often_N], often_N, ETF_KD, K)
    assert metrics["nc2"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "feat_ND",
    [torch.ones(len(LABEL_N), D), torch.full((len(LABEL_N), D), 0.1), torch.full((len(LABEL_N), D), torch.nan)],
    ids=["one point", "one rounded point", "nan"],
)
def test_features_without_geometry_have_no_metrics(feat_ND):
    assert all(math.isnan(value) for value in collapse(feat_ND, LABEL_N, ETF_KD, K).values())


@pytest.mark.parametrize("present", [0, 1])
def test_fewer_than_two_classes_have_no_metrics(present):
    keep_N = present > LABEL_N
    assert all(math.isnan(value) for value in collapse(features(0.1)[keep_N], LABEL_N[keep_N], ETF_KD, K).values())


def test_alignment_is_the_frames_gram_matrix_under_collapse_and_its_diagonal_is_nc3_cos() -> None:
    etf_KD = draw_frame(5, 9, seed=0).etf_KD
    mean_KD = 0.3 * etf_KD + torch.randn(9)
    torch.testing.assert_close(alignment(mean_KD, etf_KD), (etf_KD @ etf_KD.T).double(), atol=1e-5, rtol=0)
    feat_ND, label_N = torch.randn(40, 9), torch.arange(40) % 5
    mean_KD = torch.stack([feat_ND[label_N == c].mean(dim=0) for c in range(5)])
    found = alignment(mean_KD, etf_KD).diagonal().mean().item()
    assert abs(found - collapse(feat_ND, label_N, etf_KD, 5)["nc3_cos"]) < 1e-6


def test_alignment_leaves_out_a_class_that_nobody_has_seen() -> None:
    etf_KD, mean_KD = draw_frame(5, 9, seed=0).etf_KD, torch.randn(5, 9)
    mean_KD[3] = 0
    found = alignment(mean_KD, etf_KD)
    assert found[3].isnan().all()
    torch.testing.assert_close(found[:3], alignment(mean_KD[[0, 1, 2, 4]], etf_KD)[:3])
