"""Low-rank adapters: they change nothing at first, only they are trained, and merging gives the same outputs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fednc.common.errors import ConfigError
from fednc.common.tasks import adapters


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),  # each kernel has nine values: too small for rank 4
        nn.Flatten(),
        nn.Linear(16 * 16, 32),
    )


def test_adapters_start_as_the_identity_and_merge_to_the_same_outputs():
    plain, x = model(), torch.randn(5, 3, 4, 4)
    adapted = copy.deepcopy(plain)
    adapters.add(adapted, 4, [""])
    torch.testing.assert_close(adapted(x), plain(x), rtol=0, atol=0)
    with torch.no_grad():
        for key, value in adapted.named_parameters():
            if adapters.is_adapter(key):
                value.copy_(torch.randn_like(value))
    moved, merged = adapted(x), adapters.merged(adapted)
    assert not torch.allclose(moved, plain(x))
    torch.testing.assert_close(merged(x), moved)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(adapted(x), moved)  # merging left the original as it was


def test_the_merged_weight_is_w_plus_b_a():
    layer = nn.Sequential(nn.Linear(20, 12))
    before = layer[0].weight.detach().clone()
    adapters.add(layer, 2, [""])
    factors = layer[0].parametrizations.weight[0]
    with torch.no_grad():
        factors.up.normal_()
    expected = before + factors.up @ factors.down
    torch.testing.assert_close(adapters.merged(layer)[0].weight, expected)


def test_names_tell_adapters_from_weights():
    adapted = model()
    adapters.add(adapted, 4, ["0.", "4."])
    keys = list(adapted.state_dict())
    assert [key for key in keys if adapters.is_adapter(key)] == [
        f"{layer}.parametrizations.weight.0.{side}" for layer in ("0", "4") for side in ("up", "down")
    ]
    plain = sorted(map(adapters.plain_name, (key for key in keys if not adapters.is_adapter(key))))
    assert plain == sorted(model().state_dict())


def test_a_rank_that_saves_nothing_is_refused():
    with pytest.raises(ConfigError, match="none of 4 linear and convolution layers"):
        adapters.add(model(), 500, [""])


def test_a_model_without_adapters_is_returned_as_it_is():
    plain = model()
    assert adapters.merged(plain) is plain
