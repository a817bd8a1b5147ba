"""How the objective combines losses: presets, weights, ramp, rehearsal.

Legend: B batch, K label space, D feature width.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fednc.common.config.tables import MethodSection
from fednc.common.errors import ConfigError
from fednc.common.learning.heads import FrameHead, LinearHead, build_head
from fednc.common.learning.losses import class_prior, memory_rehearsal, objective
from support.loss_inputs import (
    COUNT_K,
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


def test_presets_build_their_heads():
    kinds = {name: build_head(MethodSection(name=name), D, K) for name in ("fedavg", "fedprox", "fedetf", "fednc")}
    assert {name: list(head.state_dict()) for name, head in kinds.items()} == {
        "fedavg": ["weight", "bias"],
        "fedprox": ["weight", "bias"],
        "fedetf": ["scale"],
        "fednc": [],
    }
    assert kinds["fedavg"].weight.shape == (K, D)
    assert kinds["fedetf"].scale.item() == MethodSection(name="fedetf").scale
    assert kinds["fednc"].scale == MethodSection(name="fednc").scale


def test_fedavg_is_plain_cross_entropy_of_a_linear_layer():
    linear = LinearHead(D, K).double()
    plain = nn.Linear(D, K).double()
    plain.load_state_dict(linear.state_dict())
    feat_BD = 5 * normal(B, D)
    total, parts = objective(feat_BD, LABEL_B, linear, guide_for(name="fedavg"))
    assert torch.equal(total, F.cross_entropy(plain(feat_BD), LABEL_B))
    assert parts.keys() == {"alignment"}


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ({"loss": "dot", "dot_weight": 3.0}, lambda f: 3.0 * LOSSES_OF_FEATURES["dot"](f)),
        ({"loss": "ce", "scale": 8.0}, frame_loss),
        (
            {"loss": "balanced-ce", "scale": 8.0, "prior_tau": 0.5},
            lambda f: frame_loss(f, prior_K=class_prior(COUNT_K, 0.5)),
        ),
    ],
    ids=["dot", "ce", "balanced-ce"],
)
def test_objective_aligns_as_the_method_says(method, wanted):
    feat_BD, guide = normal(B, D), guide_for(name="fednc", **method)
    total, _ = objective(feat_BD, LABEL_B, build_head(guide.method, D, K), guide)
    torch.testing.assert_close(total, wanted(feat_BD))


def test_balanced_cross_entropy_of_a_linear_head_uses_the_prior():
    guide, feat_BD, head = guide_for(name="fedavg", loss="balanced-ce"), normal(B, D), LinearHead(D, K).double()
    total, _ = objective(feat_BD, LABEL_B, head, guide)
    torch.testing.assert_close(total, F.cross_entropy(head(feat_BD) + class_prior(COUNT_K, 1.0), LABEL_B))


@pytest.mark.parametrize("ramp", [0.25, 1.0])
def test_memory_terms_are_weighted_and_ramped(ramp):
    feat_BD, projected_KD = normal(B, D), normal(K, D, seed=9)
    guide = guide_for(ramp, name="fednc", anchor=0.5, rehearsal=2.0)
    head = build_head(guide.method, D, K)
    total, parts = objective(feat_BD, LABEL_B, head, guide, projected_KD)
    torch.testing.assert_close(parts["anchor"], ramp * 0.5 * LOSSES_OF_FEATURES["anchor"](feat_BD))
    torch.testing.assert_close(
        parts["rehearsal"], ramp * 2.0 * memory_rehearsal(projected_KD, SEEN_K, head, guide)
    )
    torch.testing.assert_close(total, parts["alignment"] + parts["anchor"] + parts["rehearsal"])


def test_memory_terms_are_absent_during_warm_up():
    guide = guide_for(0.0, name="fednc", anchor=0.5, rehearsal=2.0)
    _, parts = objective(normal(B, D), LABEL_B, build_head(guide.method, D, K), guide, normal(K, D))
    assert parts.keys() == {"alignment"}


def test_rehearsal_reaches_the_projection():
    projection = nn.Linear(12, D).double()
    guide = guide_for(name="fednc", rehearsal=1.0)
    memory_KZ = normal(K, 12)
    objective(normal(B, D), LABEL_B, build_head(guide.method, D, K), guide, projection(memory_KZ))[0].backward()
    assert projection.weight.grad.any()


@pytest.mark.parametrize("method", [{"name": "fedavg"}, {"name": "fedetf"}])
def test_rehearsal_without_projection_trains_the_head(method):
    guide = guide_for(**method, rehearsal=1.0)
    head = build_head(guide.method, D, K).double()
    _, parts = objective(normal(B, D), LABEL_B, head, guide)
    torch.testing.assert_close(parts["rehearsal"], memory_rehearsal(MEAN_KD, SEEN_K, head, guide).detach())


@pytest.mark.parametrize("ramp", [0.0, 1.0])
@pytest.mark.parametrize("method", [{"name": "fednc"}, {"name": "fedetf", "loss": "dot"}])
def test_rehearsal_that_would_train_nothing_is_refused_from_the_first_step(method, ramp):
    guide = guide_for(ramp, **method, rehearsal=0.3)
    with pytest.raises(ConfigError, match=r"method\.rehearsal = 0\.3 would train nothing"):
        objective(normal(B, D), LABEL_B, build_head(guide.method, D, K), guide)


def test_parts_are_detached_and_the_total_is_not():
    feat_BD = normal(B, D).requires_grad_()
    total, parts = objective(feat_BD, LABEL_B, FrameHead(8.0, False), guide_for(anchor=1.0))
    assert total.requires_grad
    assert not any(part.requires_grad for part in parts.values())


def test_labels_of_any_shape():
    feat_BD, head, guide = normal(B, D), FrameHead(8.0, False), guide_for(anchor=1.0)
    assert torch.equal(
        objective(feat_BD, LABEL_B.reshape(2, 2, 2), head, guide)[0], objective(feat_BD, LABEL_B, head, guide)[0]
    )


@pytest.mark.parametrize("name", ["fedavg", "fednc"])
def test_classes_that_a_sample_may_not_have_are_left_out_of_its_softmax(name):
    head, guide, feat_BD = build_head(MethodSection(name=name), D, K), guide_for(name=name), normal(B, D)
    head = head.double()
    allowed_BK = torch.rand(B, K, generator=torch.Generator().manual_seed(0)) < 0.5
    allowed_BK[torch.arange(B), LABEL_B] = True
    found = objective(feat_BD, LABEL_B, head, guide, allowed_BK=allowed_BK)[0]
    each = []
    for feat_D, label, allowed_K in zip(feat_BD, LABEL_B, allowed_BK, strict=True):
        score_K = head(feat_D[None]) if name == "fedavg" else head(feat_D[None], guide.etf_KD)
        prior_K = 0.0 if name == "fedavg" else class_prior(guide.count_K, guide.method.prior_tau)
        odds_K = (score_K[0] + prior_K).exp()
        each.append(-(odds_K[label] / odds_K[allowed_K].sum()).log())
    torch.testing.assert_close(found, torch.stack(each).mean())
    everything = objective(feat_BD, LABEL_B, head, guide, allowed_BK=torch.ones_like(allowed_BK))[0]
    torch.testing.assert_close(everything, objective(feat_BD, LABEL_B, head, guide)[0])
