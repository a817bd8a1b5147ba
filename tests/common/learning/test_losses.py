"""Losses: gradients, closed forms and the direction of every pull.

Legend: B batch, K label space, D feature width.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from fednc.common.learning.frame import draw_frame, unit
from fednc.common.learning.heads import FrameHead, LinearHead, logits
from fednc.common.learning.losses import (
    class_prior,
    cross_entropy,
    dot_regression,
    memory_anchor,
    memory_rehearsal,
    proximal,
)
from support.loss_inputs import (
    COUNT_K,
    ETF_KD,
    LABEL_B,
    LOSSES_OF_FEATURES,
    MEAN_KD,
    SEEN_K,
    B,
    D,
    K,
    frame_loss,
    guide_for,
    normal,
)

TARGETS_BD = {
    "dot": ETF_KD[LABEL_B],
    "ce": ETF_KD[LABEL_B],
    "balanced-ce": ETF_KD[LABEL_B],
    "anchor": MEAN_KD[LABEL_B],
}


def rehearse(feat_KD: torch.Tensor, loss: str) -> torch.Tensor:
    return memory_rehearsal(feat_KD, SEEN_K, FrameHead(8.0, False), guide_for(name="fednc", loss=loss))


@pytest.mark.parametrize("name", LOSSES_OF_FEATURES)
def test_gradients_with_respect_to_features(name):
    assert gradcheck(LOSSES_OF_FEATURES[name], normal(B, D).requires_grad_())


@pytest.mark.parametrize("loss", ["dot", "ce"])
def test_gradients_of_rehearsal(loss):
    assert gradcheck(lambda f: rehearse(f, loss), normal(K, D).requires_grad_())


def test_gradients_with_respect_to_the_heads():
    linear, scaled = LinearHead(D, K).double(), FrameHead(3.0, True).double()
    guide, feat_BD = guide_for(), normal(B, D)
    for head in (linear, scaled):
        names, values = zip(*head.named_parameters(), strict=True)

        def loss(*values, head=head, names=names):
            arguments = (feat_BD,) if head is linear else (feat_BD, ETF_KD)
            return F.cross_entropy(
                torch.func.functional_call(head, dict(zip(names, values, strict=True)), arguments), LABEL_B
            )

        assert gradcheck(loss, values)
        assert torch.equal(loss(*values), cross_entropy(logits(head, feat_BD, guide), LABEL_B))


def test_gradients_of_the_proximal_term():
    local = [normal(3, 2).requires_grad_(), normal(4, seed=1).requires_grad_()]
    start = [normal(3, 2, seed=2), normal(4, seed=3)]
    assert not proximal([w.detach() for w in local], local).requires_grad
    assert gradcheck(lambda *w: proximal(w, start), local)
    for gradient, w, w_global in zip(
        torch.autograd.grad(proximal(local, start), local), local, start, strict=True
    ):
        torch.testing.assert_close(gradient, w - w_global)
    assert proximal([torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 4.0])]) == 12.5
    with pytest.raises(ValueError, match="shorter"):
        proximal(local, start[:1])


@pytest.mark.parametrize("name", LOSSES_OF_FEATURES)
def test_one_step_lowers_the_loss_and_moves_each_feature_towards_its_target(name):
    """Fails for a flipped sign anywhere in the loss."""
    loss = LOSSES_OF_FEATURES[name]
    feat_BD = unit(normal(B, D)).requires_grad_()
    (gradient_BD,) = torch.autograd.grad(loss(feat_BD), feat_BD)
    stepped_BD = feat_BD - 0.05 * gradient_BD
    assert loss(stepped_BD) < loss(feat_BD)
    counts_B = SEEN_K[LABEL_B] if name == "anchor" else torch.ones(B, dtype=torch.bool)
    before_B = F.cosine_similarity(feat_BD, TARGETS_BD[name])
    after_B = F.cosine_similarity(stepped_BD, TARGETS_BD[name])
    assert (after_B > before_B)[counts_B].all()
    assert torch.equal(after_B[~counts_B], before_B[~counts_B])


@pytest.mark.parametrize("loss", ["dot", "ce"])
def test_one_step_of_rehearsal_moves_seen_memories_towards_their_vertex(loss):
    feat_KD = unit(normal(K, D)).requires_grad_()
    (gradient_KD,) = torch.autograd.grad(rehearse(feat_KD, loss), feat_KD)
    stepped_KD = feat_KD - 0.05 * gradient_KD
    assert rehearse(stepped_KD, loss) < rehearse(feat_KD, loss)
    moved_K = F.cosine_similarity(stepped_KD, ETF_KD) - F.cosine_similarity(feat_KD, ETF_KD)
    assert (moved_K[SEEN_K] > 0).all()
    assert not gradient_KD[~SEEN_K].any()


@pytest.mark.parametrize("length", [0.5, 1.0, 4.0])
def test_dot_regression_pulls_along_the_vertex_and_weakens_with_the_gap(length):
    """d/dh = -(1 - cos) m_y for the unit h; on the raw feature its tangential part over the length."""
    feat_1D = (length * unit(normal(1, D))).requires_grad_()
    (gradient_1D,) = torch.autograd.grad(dot_regression(feat_1D, torch.tensor([2]), ETF_KD), feat_1D)
    h_D, m_D = unit(feat_1D.detach())[0], ETF_KD[2]
    cosine = h_D @ m_D / m_D.norm()
    tangential_D = m_D - (m_D @ h_D) * h_D
    torch.testing.assert_close(gradient_1D[0], -(1 - cosine) * tangential_D / length, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("classes", "scale"), [(10, 1.0), (10, 10.0), (100, 1.0), (100, 16.0)])
def test_cross_entropy_floor_at_perfect_alignment(classes, scale):
    etf_KD = draw_frame(classes, 128, seed=0).etf_KD.double()
    loss = F.cross_entropy(FrameHead(scale, False)(3.0 * etf_KD, etf_KD), torch.arange(classes))
    floor = math.log(1 + (classes - 1) * math.exp(-scale * classes / (classes - 1)))
    assert loss.item() == pytest.approx(floor, rel=1e-3)


def test_dot_regression_and_anchor_are_zero_only_on_target():
    assert dot_regression(2.0 * ETF_KD, torch.arange(K), ETF_KD).item() == pytest.approx(0, abs=1e-12)
    assert dot_regression(-ETF_KD, torch.arange(K), ETF_KD).item() == pytest.approx(2, abs=1e-6)
    directions_KD, all_seen_K = unit(normal(K, D)), torch.ones(K, dtype=torch.bool)
    assert memory_anchor(directions_KD, torch.arange(K), directions_KD, all_seen_K).item() == pytest.approx(0)
    assert memory_anchor(-directions_KD, torch.arange(K), directions_KD, all_seen_K).item() == pytest.approx(2)


def test_losses_of_cosines_do_not_depend_on_the_length_of_features():
    feat_BD, length_B1 = normal(B, D), torch.arange(1.0, B + 1).unsqueeze(1)
    for loss in LOSSES_OF_FEATURES.values():
        torch.testing.assert_close(loss(feat_BD), loss(feat_BD * length_B1))


def test_the_prior_is_the_log_share_and_absent_classes_count_as_one():
    share_K = torch.tensor([0.05, 0.01, 0.90, 0.03, 0.01, 0.02])
    torch.testing.assert_close(class_prior(COUNT_K, 2.0), 2.0 * share_K.log())
    assert torch.equal(class_prior(torch.zeros(K, dtype=torch.int64), 1.0), torch.zeros(K))


def test_prior_invariances():
    """It has no effect at tau 0 or with equal counts, and an added constant has none."""
    feat_BD, prior_K = normal(B, D), class_prior(COUNT_K, 1.0)
    equal_K = class_prior(torch.full((K,), 7), 1.0)
    torch.testing.assert_close(frame_loss(feat_BD, prior_K=equal_K), frame_loss(feat_BD))
    torch.testing.assert_close(frame_loss(feat_BD, prior_K=class_prior(COUNT_K, 0.0)), frame_loss(feat_BD))
    torch.testing.assert_close(frame_loss(feat_BD, prior_K=prior_K + 3.0), frame_loss(feat_BD, prior_K=prior_K))


def test_with_the_prior_rare_classes_push_harder_than_frequent_ones():
    feat_BD = torch.zeros(2, D, dtype=torch.float64)
    frequent, rare = torch.tensor([2]), torch.tensor([3])
    scores_BK, prior_K = feat_BD @ ETF_KD.T, class_prior(COUNT_K, 1.0)
    plain = cross_entropy(scores_BK[:1], rare)
    assert cross_entropy(scores_BK[:1], rare, prior_K) > plain > cross_entropy(scores_BK[:1], frequent, prior_K)


def test_anchor_is_the_mean_over_samples_of_seen_classes():
    feat_BD = normal(B, D)
    eligible_B = SEEN_K[LABEL_B]
    gap_ED = unit(feat_BD)[eligible_B] - MEAN_KD[LABEL_B][eligible_B]
    wanted = 0.5 * gap_ED.square().sum(dim=1).mean()
    torch.testing.assert_close(memory_anchor(feat_BD, LABEL_B, MEAN_KD, SEEN_K), wanted)


def test_memory_terms_without_memory_are_zero_with_zero_gradient():
    nothing_K = torch.zeros(K, dtype=torch.bool)
    feat_BD = normal(B, D).requires_grad_()
    anchor = memory_anchor(feat_BD, LABEL_B, torch.zeros(K, D).double(), nothing_K)
    rehearsal = memory_rehearsal(feat_BD[:K], nothing_K, FrameHead(8.0, False), guide_for())
    for loss in (anchor, rehearsal):
        (gradient,) = torch.autograd.grad(loss, feat_BD)
        assert loss == 0
        assert not gradient.any()


def test_memory_gets_no_gradient():
    mean_KD = MEAN_KD.clone().requires_grad_()
    memory_anchor(normal(B, D).requires_grad_(), LABEL_B, mean_KD, SEEN_K).backward()
    assert mean_KD.grad is None


@pytest.mark.parametrize("name", LOSSES_OF_FEATURES)
def test_a_zero_feature_leaves_everything_finite(name):
    feat_BD = normal(B, D)
    feat_BD[0] = 0
    feat_BD.requires_grad_()
    (gradient_BD,) = torch.autograd.grad(LOSSES_OF_FEATURES[name](feat_BD), feat_BD)
    assert gradient_BD.isfinite().all()
    assert not gradient_BD[0].any()
    assert gradient_BD[1].any()


# Heads and the objective.
