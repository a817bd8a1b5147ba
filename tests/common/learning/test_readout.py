"""Read-out: the vector that stands for a class, for seen, unseen and reserved classes.

Legend: B batch, K label space, D feature width.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fednc.common.config.tables import MethodSection
from fednc.common.learning.frame import draw_frame, unit
from fednc.common.learning.heads import FrameHead, LinearHead
from fednc.common.learning.readout import readout_logits
from fednc.common.learning.round_context import Guide

K, D, CLASSES, SCALE = 6, 8, 5, 16.0
ETF_KD = draw_frame(K, D, seed=0).etf_KD
SEEN_K = torch.tensor([True, False, True, True, False, False])
HEAD = FrameHead(SCALE, False)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MEAN_KD = torch.where(
    SEEN_K[:, None], torch.tensor([0.9, 1, 0.3, 0.6, 1, 1])[:, None] * unit(normal(K, D, seed=1)), 0.0
)


def guide_for(readout: str, seen_K: torch.Tensor = SEEN_K, mean_KD: torch.Tensor = MEAN_KD) -> Guide:
    name = "fedavg" if readout == "head" else "fednc"
    return Guide(
        method=MethodSection(name=name, readout=readout),
        etf_KD=ETF_KD,
        mean_KD=mean_KD,
        seen_K=seen_K,
        count_K=torch.tensor([100, 0, 0, 0, 0, 0]),
    )


def test_vertex_is_the_scaled_cosine_without_prior():
    feat_BD = normal(20, D)
    score_BK = readout_logits(feat_BD, HEAD, guide_for("vertex"), CLASSES)
    torch.testing.assert_close(score_BK[:, :CLASSES], SCALE * unit(feat_BD) @ ETF_KD[:CLASSES].T)
    assert readout_logits(ETF_KD[:CLASSES], HEAD, guide_for("vertex"), CLASSES).argmax(dim=1).tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_head_is_the_trained_classifier_on_raw_features():
    head, feat_BD = LinearHead(D, K), 7 * normal(20, D)
    score_BK = readout_logits(feat_BD, head, guide_for("head"), CLASSES)
    assert torch.equal(score_BK[:, :CLASSES], head(feat_BD)[:, :CLASSES])


def test_memory_is_the_nearest_class_mean():
    feat_BD = normal(20, D)
    score_BK = readout_logits(feat_BD, HEAD, guide_for("memory"), CLASSES)
    distance_BK = torch.cdist(unit(feat_BD), MEAN_KD[SEEN_K]).square()
    expected_BK = SCALE * (1 - distance_BK) / 2  # |h|^2 = 1 is the same for all classes
    torch.testing.assert_close(score_BK[:, SEEN_K], expected_BK)
    assert score_BK[:, ~SEEN_K].eq(-torch.inf).all()


def test_cosine_compares_directions_alone():
    feat_BD = normal(20, D)
    score_BK = readout_logits(feat_BD, HEAD, guide_for("cosine"), CLASSES)
    expected_BK = SCALE * torch.nn.functional.cosine_similarity(feat_BD[:, None], MEAN_KD[SEEN_K], dim=2)
    torch.testing.assert_close(score_BK[:, SEEN_K], expected_BK)
    longer = guide_for("cosine", mean_KD=MEAN_KD * torch.rand(K, 1))
    torch.testing.assert_close(readout_logits(3 * feat_BD, HEAD, longer, CLASSES), score_BK)


def test_discriminant_is_the_nearest_class_mean_in_the_metric():
    feat_BD, root_DD = normal(20, D), normal(D, D, seed=3)
    guide = replace(guide_for("discriminant"), metric_DD=root_DD @ root_DD.T)
    vectors_VD = torch.cat([MEAN_KD[SEEN_K], MEAN_KD[SEEN_K].mean(dim=0, keepdim=True)])
    *distance_KB, to_all_B = torch.cdist(vectors_VD @ root_DD, unit(feat_BD) @ root_DD).square()
    score_BK = readout_logits(feat_BD, HEAD, guide, CLASSES)
    expected_KB = (to_all_B - torch.stack(distance_KB)) / 2
    torch.testing.assert_close(score_BK[:, SEEN_K].T, expected_KB, rtol=1e-4, atol=1e-4)
    assert score_BK[:, ~SEEN_K].eq(-torch.inf).all()


def test_discriminant_without_a_metric_is_the_memory():
    feat_BD, by_memory = normal(20, D), guide_for("memory")
    memory_BK = readout_logits(feat_BD, HEAD, by_memory, CLASSES)
    assert torch.equal(readout_logits(feat_BD, HEAD, guide_for("discriminant"), CLASSES), memory_BK)
    flat = replace(guide_for("discriminant"), metric_DD=torch.eye(D))
    flat_BK = SCALE * readout_logits(feat_BD, HEAD, flat, CLASSES)
    torch.testing.assert_close(flat_BK.log_softmax(dim=1), memory_BK.log_softmax(dim=1))


def test_memory_of_a_linear_head_uses_directions():
    guide = Guide(
        method=MethodSection(name="fedavg", readout="memory"),
        etf_KD=ETF_KD,
        mean_KD=MEAN_KD,
        seen_K=SEEN_K,
        count_K=torch.zeros(K),
    )
    scores = [readout_logits(length * normal(20, D), LinearHead(D, K), guide, CLASSES) for length in (1, 10)]
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize("readout", ["memory", "blend", "discriminant"])
@pytest.mark.parametrize("seen", [[], [CLASSES]], ids=["nothing", "only a reserved class"])
def test_without_a_memory_the_vertices_decide(readout, seen):
    feat_BD, seen_K = normal(20, D), torch.zeros(K, dtype=torch.bool)
    seen_K[seen] = True
    score_BK = readout_logits(feat_BD, HEAD, guide_for(readout, seen_K, torch.zeros(K, D)), CLASSES)
    torch.testing.assert_close(score_BK, readout_logits(feat_BD, HEAD, guide_for("vertex"), CLASSES))


def test_blend_is_the_likelihood_of_both():
    """Up to a factor: cosine to the vertex, plus the nearest mean in units of the variance within classes."""
    feat_BD = normal(20, D)
    variance = 1 - MEAN_KD[SEEN_K].norm(dim=1).mean().square()
    distance_BK = torch.cdist(unit(feat_BD), MEAN_KD).square()
    likelihood_BK = unit(feat_BD) @ ETF_KD.T - distance_BK / (2 * variance)
    score_BK = readout_logits(feat_BD, HEAD, guide_for("blend"), CLASSES)[:, SEEN_K]
    gap_BK, expected_BK = score_BK - score_BK[:, :1], likelihood_BK[:, SEEN_K] - likelihood_BK[:, SEEN_K][:, :1]
    torch.testing.assert_close(gap_BK, SCALE * expected_BK * variance / (1 + variance))


@pytest.mark.parametrize("length", [1e-6, 1.0])
def test_blend_weighs_the_memory_by_its_length(length):
    """Half if features point anywhere; fully if all features of a class are the same."""
    feat_BD, mean_KD = normal(20, D), length * unit(normal(K, D, seed=2))
    seen_K = torch.ones(K, dtype=torch.bool)
    score = {
        name: readout_logits(feat_BD, HEAD, guide_for(name, seen_K, mean_KD), K)
        for name in (
            "vertex",
            "memory",
            "blend",
        )
    }
    expected = score["memory"] if length == 1.0 else (score["memory"] + score["vertex"]) / 2
    torch.testing.assert_close(score["blend"], expected)


def test_a_memory_on_its_vertex_changes_no_prediction():
    """A class never seen and one whose memory is its vertex are treated alike."""
    feat_BD, mean_KD = normal(50, D), torch.where(SEEN_K[:, None], 0.4 * ETF_KD, 0.0)
    blend_BK = readout_logits(feat_BD, HEAD, guide_for("blend", mean_KD=mean_KD), CLASSES)
    vertex_BK = readout_logits(feat_BD, HEAD, guide_for("vertex"), CLASSES)
    assert torch.equal(blend_BK.argsort(dim=1), vertex_BK.argsort(dim=1))


@pytest.mark.parametrize("readout", ["head", "vertex", "memory", "blend", "discriminant"])
@pytest.mark.parametrize("classes", [2, K])
def test_reserved_classes_are_never_predicted(readout, classes):
    head = LinearHead(D, K) if readout == "head" else HEAD
    score_BK = readout_logits(torch.cat([ETF_KD, -ETF_KD]), head, guide_for(readout), classes)
    assert score_BK[:, classes:].eq(-torch.inf).all()
    assert score_BK[:, 0].isfinite().all()
    assert score_BK.argmax(dim=1).max() < classes
