"""How much of a node's claim counts, and what its replies are checked against."""

from __future__ import annotations

import pytest
from flwr.app import MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fednc.common.errors import ProtocolError, StaleError
from fednc.common.wire.messages import CLASS_COUNTS, EXAMPLES, HELD_OUT, METRICS
from fednc.protos import federation_pb2 as pb
from fednc.server.aggregation.holdings import ABSURD, FAR, FAR_IN_A_PAIR, Holding, believed
from fednc.server.link import message_limits

CLAIM = st.integers(1, 2**32)


def hello(examples: object = 10, held_out: object = 2, counts: object = (4, 6)) -> RecordDict:
    metrics = {EXAMPLES: examples, HELD_OUT: held_out, CLASS_COUNTS: list(counts)}
    return RecordDict({METRICS: MetricRecord(metrics)})


@given(st.lists(CLAIM, min_size=3, max_size=12))
def test_no_node_counts_for_more_than_it_claims_or_far_more_than_the_median(claims: list[int]) -> None:
    counted = believed(dict(enumerate(claims)))
    usual = sorted(claims)[len(claims) // 2]
    assert counted.keys() == set(range(len(claims)))
    for node, claim in enumerate(claims):
        assert 0 <= counted[node] <= min(claim, FAR * usual)
        if claim <= FAR * usual:
            assert counted[node] == claim


@given(st.lists(st.integers(100, 500), min_size=3, max_size=9), CLAIM)
def test_one_liar_changes_no_other_weight_and_gets_no_more_than_the_largest(honest: list[int], lie: int) -> None:
    """Honest claims are within a factor of five, so none of them looks wrong, whatever the liar claims."""
    counted = believed({**dict(enumerate(honest)), 99: lie})
    assert [counted[node] for node in range(len(honest))] == honest
    assert counted[99] <= FAR * max(honest)
    if lie > FAR * max(honest):
        assert counted[99] <= max(honest)
    if lie > ABSURD * max(honest):
        assert counted[99] == 0


@given(CLAIM, CLAIM)
def test_with_two_nodes_only_the_precision_of_the_sum_is_protected(one: int, other: int) -> None:
    counted = believed({1: one, 2: other})
    assert max(counted.values()) <= FAR_IN_A_PAIR * min(counted.values())
    assert min(counted.values()) == min(one, other)


@given(st.lists(CLAIM, min_size=1, max_size=8), st.integers(1, 2**20))
def test_an_operators_bound_replaces_all_guesses(claims: list[int], most: int) -> None:
    assert list(believed(dict(enumerate(claims)), most).values()) == [min(claim, most) for claim in claims]


def test_without_nodes_nothing_counts() -> None:
    assert believed({}) == {}


def test_an_announcement_is_read() -> None:
    assert Holding.of(hello(), 2) == Holding(10, 2, (4, 6))
    assert Holding.of(hello(), 2, declared=(10, 2, (4, 6))) == Holding(10, 2, (4, 6))


def test_an_example_may_have_several_members_of_classes_if_the_task_says_so() -> None:
    many = hello(counts=(30, 20))
    assert Holding.of(many, 2, members_per_example=5).count_K == (30, 20)
    for most in (1, 4):
        with pytest.raises(ProtocolError, match="do not fit its 10 examples"):
            Holding.of(many, 2, members_per_example=most)
    declaration = pb.Declaration(examples=10, class_counts=[30, 20])
    message_limits.check_declaration(declaration, 2, 5)
    with pytest.raises(message_limits.InvalidError, match="more than 10 examples can have"):
        message_limits.check_declaration(declaration, 2, 4)


@pytest.mark.parametrize(
    "content",
    [
        hello(examples=-1),
        hello(examples=2.0),
        hello(held_out=2**40),
        hello(held_out=1.0),
        hello(counts=(4,)),
        hello(counts=(4, 7)),
        hello(counts=(-1, 5)),
        hello(counts=(4.0, 6.0)),
        RecordDict({METRICS: MetricRecord({EXAMPLES: 10})}),
        RecordDict(),
    ],
    ids=str,
)
def test_invalid_announcements_are_refused(content: RecordDict) -> None:
    with pytest.raises(ProtocolError):
        Holding.of(content, 2)


@pytest.mark.parametrize("declared", [(9, 2, (4, 6)), (10, 1, (4, 6)), (10, 2, (5, 5))])
def test_more_than_was_declared_is_stale(declared: tuple[int, int, tuple[int, ...]]) -> None:
    with pytest.raises(StaleError):
        Holding.of(hello(), 2, declared)
