"""What a session of few-shot learning minimises."""

from __future__ import annotations

import pytest
import torch
from fewshot_setting import DOT, D, K, config, guide

from fednc.common import tasks
from fednc.common.errors import ConfigError
from fednc.common.heads import FrameHead
from fednc.common.tasks.fewshot.objective import rehearsed, session_loss


def test_memory_stands_in_for_classes_without_examples_and_copies_count() -> None:
    seen_K = torch.arange(K) < 8
    held_K = torch.arange(K) >= 6
    memory_KD = torch.randn(K, D)
    mean_MD, label_M = rehearsed(guide(mean_KD=memory_KD, seen_K=seen_K), base=4, copies=3, held_K=held_K)
    assert label_M.tolist() == [0, 1, 2, 3, 4, 4, 4, 5, 5, 5]
    assert torch.equal(mean_MD, memory_KD[label_M])


def test_mixing_half_and_half_keeps_a_batch_of_one_class_as_it_is() -> None:
    feat_ND, label_N = torch.randn(1, D).repeat(6, 1), torch.full((6,), 2)
    head = FrameHead(16.0, trainable=False)
    plain, mixed = (session_loss(feat_ND, label_N, head, guide(), balance=True, mixup=p) for p in (0.0, 1.0))
    assert plain.item() == pytest.approx(mixed.item(), rel=1e-5)


def test_memory_terms_that_mean_nothing_here_are_refused() -> None:
    with pytest.raises(ConfigError, match="before the projection"):
        tasks.get(config(method={**DOT, "anchor": 0.1}))
