"""Shifts between the parts of a split: who sees what, and that training and test are shifted alike."""

from __future__ import annotations

import numpy as np
import torch

from fednc.common.config.tables import SplitSection
from fednc.tasks.vision.shifts import ImageSplit, ShiftSection, is_shifted, rotate, shift_part, shift_test


def disc(size: int = 33) -> torch.Tensor:
    """A smooth picture that is black near the border, where rotation loses nothing."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    return (torch.exp(-8 * ((x - 0.2) ** 2 + 2 * y**2)))[None, None]


def test_rotation_forth_and_back():
    picture = disc()
    assert torch.equal(rotate(picture, 0), picture)
    turned = rotate(picture, 40)
    assert (turned - picture).abs().max() > 0.2
    assert (rotate(turned, -40) - picture).abs().max() < 0.05
    quarter = rotate(picture, 90)
    torch.testing.assert_close(quarter, torch.rot90(picture, 1, (2, 3)), atol=1e-4, rtol=0)


def shifted(parts: int = 5, **shift) -> ImageSplit:
    return ImageSplit(kind="iid", parts=parts, seed=3, shift=ShiftSection(**shift))


def test_parts_turn_from_minus_r_to_r():
    picture, split = disc(), shifted(rotation_deg=30)
    for part, degrees in enumerate((-30, -15, 0, 15, 30)):
        torch.testing.assert_close(shift_part(picture, split, part), rotate(picture, degrees), atol=1e-6, rtol=0)
    assert torch.equal(shift_part(picture, shifted(parts=1, rotation_deg=30, noise=1), 0), picture)


def test_noise_grows_and_gain_is_per_channel():
    grey = torch.full((50, 3, 8, 8), 0.5)
    spread = [shift_part(grey, shifted(noise=0.1), part).std().item() for part in range(5)]
    assert spread[0] == 0
    np.testing.assert_allclose(spread, np.linspace(0, 0.1, 5), atol=5e-3)
    tinted = shift_part(grey, shifted(colour=0.4), 2)
    gains = tinted[0, :, 0, 0] / 0.5
    assert (tinted == tinted[:1, :, :1, :1]).all()
    assert len(set(gains.tolist())) == 3
    assert ((gains >= 0.6) & (gains <= 1.4)).all()
    assert not torch.equal(tinted, shift_part(grey, shifted(colour=0.4), 3))
    assert torch.equal(tinted, shift_part(grey, shifted(colour=0.4), 2))


def test_test_images_are_mixed_from_all_parts():
    grey = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = shifted(parts=4, rotation_deg=20, colour=0.3)  # without noise, train and test see the same shift
    mixed = shift_test(grey, split)
    for i in range(11):
        torch.testing.assert_close(mixed[i : i + 1], shift_part(grey[i : i + 1], split, i % 4))


def test_a_split_without_shifts_changes_nothing():
    assert not is_shifted(SplitSection(parts=3))
    assert not is_shifted(shifted())
    assert all(is_shifted(shifted(**{key: 0.1})) for key in ("rotation_deg", "colour", "noise"))
