"""Totals of sums that clients send once: exact, whatever the order and the size of the values."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from fednc.server.aggregation.total_sums import TotalSums

FLOATS = st.floats(min_value=-(2.0**300), max_value=2.0**300) | st.floats(-1, 1)
COUNTS = st.integers(-(1 << 40), 1 << 40)


@given(st.lists(st.tuples(FLOATS, COUNTS), max_size=20), st.randoms())
def test_totals_are_those_of_exact_arithmetic_in_any_order(pairs: list[tuple[float, int]], draw: object) -> None:
    for order in (pairs, draw.sample(pairs, len(pairs))):  # type: ignore[attr-defined]
        totals = TotalSums({"a": torch.zeros(1, 2, dtype=torch.float64), "n": torch.tensor(0, dtype=torch.int64)})
        for wide, count in order:
            totals.add({"a": torch.tensor([[wide, -wide]], dtype=torch.float64), "n": torch.tensor(count)})
        found = totals.value()
        exact = math.fsum(wide for wide, _ in pairs)  # rounded once
        assert found["a"].tolist() == [[exact, -exact]]
        assert (found["n"].item(), found["n"].dtype) == (sum(count for _, count in pairs), torch.int64)
