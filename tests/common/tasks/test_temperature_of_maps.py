"""Losses at all temperatures when labels are maps: an example's loss is the mean over what is labelled in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fednc.common.tasks.metrics import judged
from fednc.common.tasks.temperature import GRID, LOSS, ROWS, losses

VOID = 255


def test_an_examples_loss_is_the_mean_over_its_labelled_pixels() -> None:
    draw = torch.Generator().manual_seed(0)
    score_BKHW = torch.randn(3, 4, 5, 6, generator=draw)
    label_BHW = torch.randint(0, 4, (3, 5, 6), generator=draw)
    label_BHW[0, :3] = VOID
    label_BHW[2] = VOID  # nothing of it is labelled
    found = losses(score_BKHW, label_BHW)
    assert int(found[ROWS]) == 2
    for place in (GRID.index(1), len(GRID) - 1):  # below 1, single losses reach the limit
        wanted = sum(
            F.cross_entropy(score_BKHW[b : b + 1].double() / GRID[place], label_BHW[b : b + 1], ignore_index=VOID)
            for b in (0, 1)
        )
        torch.testing.assert_close(found[LOSS][place], torch.as_tensor(wanted), rtol=1e-5, atol=1e-5)


def test_maps_of_one_pixel_are_examples_with_one_label() -> None:
    draw = torch.Generator().manual_seed(1)
    score_BK, label_B = torch.randn(7, 3, generator=draw), torch.randint(0, 3, (7,), generator=draw)
    flat, maps = losses(score_BK, label_B), losses(score_BK[:, :, None, None], label_B[:, None, None])
    assert all(torch.equal(flat[name], maps[name]) for name in (ROWS, LOSS))
    assert int(losses(score_BK[:0], label_B[:0])[ROWS]) == 0


def test_only_what_has_a_class_is_judged() -> None:
    score_BKP = torch.arange(12.0).reshape(1, 2, 6)
    score_MK, label_M = judged(score_BKP, torch.tensor([[0, VOID, 1, -1, 0, VOID]]))
    assert label_M.tolist() == [0, 1, 0]
    assert score_MK.tolist() == [[0.0, 6.0], [2.0, 8.0], [4.0, 10.0]]
