"""Second moments in class sums: their values, how they travel, their effect on the memory, which are refused.

Legend: N examples, D feature width, K label space.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.errors import ProtocolError
from fednc.common.learning.class_memory import ClassMemory, ClassSums, check_sums
from fednc.common.learning.frame import unit
from support.class_sums import D, K, examples, sums_of


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(0, 10**6))
def test_second_moments_on_the_wire_are_those_of_the_data_except_for_rounding(count, seed):
    feat_ND, label_N = examples(count, seed)
    received = ClassSums.from_tensors(sums_of(feat_ND, label_N).to_tensors())
    exact_DD = feat_ND.double().T @ feat_ND.double()
    assert received.moment_DD is not None
    torch.testing.assert_close(received.moment_DD, exact_DD, rtol=0, atol=count * 2.0**-14)
    assert torch.equal(received.moment_DD, received.moment_DD.T)


def test_scatter_is_the_covariance_around_class_means():
    feat_ND, label_N = examples(4000, seed=3)
    sums = sums_of(feat_ND, label_N)
    centred_ND = feat_ND.double() - sums.mean_KD[label_N]
    torch.testing.assert_close(sums.scatter_DD / 4000, centred_ND.T @ centred_ND / 4000, rtol=0, atol=1e-6)


def test_sums_without_moments_do_not_change_the_metric():
    feat_ND, label_N = examples(100, seed=1)
    known = ClassMemory.empty(K, D).update(sums_of(feat_ND, label_N), 0.0)
    one_of_each = sums_of(feat_ND[:4], torch.arange(4))
    for sums in (ClassSums.zeros(K, D, moment=True), one_of_each):
        assert known.update(sums, 0.0).metric_DD is known.metric_DD
        assert ClassMemory.empty(K, D).update(sums, 0.0).metric_DD is None


def test_moments_that_are_missing_are_refused():
    with pytest.raises(ProtocolError, match="no second moments"):
        sums_of(*examples(20, seed=1)).merge(ClassSums.zeros(K, D))


def test_unrequested_moments_are_ignored():
    plain, full = ClassSums.zeros(K, D), sums_of(*examples(20, seed=1))
    assert plain.merge(full).moment_DD is None
    assert "moment_T" not in plain.to_tensors()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2000), st.sampled_from([0.0, 1e-4, 1e-2]), st.integers(0, 10**6))
def test_honest_sums_of_collapsed_classes_and_of_features_without_direction_pass(count, spread, seed):
    g = torch.Generator().manual_seed(seed)
    centre_KD, label_N = torch.randn(K, 96, generator=g), torch.randint(K, (count,), generator=g)
    feat_ND = unit(unit(centre_KD)[label_N] + spread * torch.randn(count, 96, generator=g))
    feat_ND[::7] = 0.0  # what `unit` makes of tiny features
    sums = ClassSums.zeros(K, 96, moment=True).add_batch(feat_ND, label_N)
    check_sums(ClassSums.from_tensors(sums.to_tensors()), K, [count] * K)
