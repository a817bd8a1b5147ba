"""Sums of columns: their mean and deviation, what a client leaves out, and what the server refuses."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fednc.common.errors import ProtocolError
from fednc.common.tasks.moments import Moments

VALUES = st.floats(-(2.0**40), 2.0**40, width=32)
ROWS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=30)


@given(ROWS)
def test_honest_sums_pass_and_give_mean_and_deviation(rows: list[tuple[float, float]]) -> None:
    moments = Moments(2)
    sums = moments.sums(torch.tensor(rows, dtype=torch.float32), 1)
    moments.check(sums, len(rows))
    mean_F, deviation_F = moments.mean_and_deviation(sums)
    for column in range(2):
        values = [row[column] for row in rows]
        largest = max(map(abs, values))
        assert mean_F[column].item() == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1e-12 * largest)
        wanted = statistics.pstdev(values)
        if wanted > 1e-5 * largest:
            assert deviation_F[column].item() == pytest.approx(wanted, rel=1e-5)
    assert bool((deviation_F > 0).all())


def test_a_missing_value_counts_for_nothing_and_a_column_of_few_values_is_left_out() -> None:
    nan = float("nan")
    rows = torch.tensor([[1.0, nan, 2.0], [3.0, 7.0, nan], [5.0, nan, 4.0]])
    sums = Moments(3).sums(rows, least=2)
    assert sums["count"].tolist() == [3, 0, 2]
    assert sums["sum"].tolist() == [9.0, 0.0, 6.0], "the one value of the second column must not leave"
    mean_F, deviation_F = Moments(3).mean_and_deviation(sums)
    assert mean_F.tolist() == [3.0, 0.0, 3.0]
    assert deviation_F[1:].tolist() == [1.0, 1.0]
    assert Moments(3, per_example=2).sums(rows, least=2)["count"].tolist() == [0, 0, 0], "1.5 windows are too few"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", [5, 4]),
        ("count", [-1, 4]),
        ("count", [0, 4]),
        ("sum", [100.0, 0.0]),
        ("square", [-1.0, 1.0]),
        ("square", [1.0, 60.0]),
    ],
)
def test_sums_that_no_examples_have_are_refused(name: str, value: list[float]) -> None:
    rows: Tensor = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]])
    sums = Moments(2).sums(rows, 1)
    Moments(2).check(sums, 4)
    with pytest.raises(ProtocolError):
        Moments(2).check({**sums, name: torch.tensor(value, dtype=sums[name].dtype)}, 4)
