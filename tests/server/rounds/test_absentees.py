"""Nodes that are connected and silent are asked less and less often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fednc.server.rounds.absentees import Absentees


def rounds_asked(silent: set[int], total: int) -> list[int]:
    """The rounds in which node 1 is asked. It leaves the rounds in `silent` unanswered; node 2 always answers."""
    absentees, asked_in = Absentees(), []
    for number in range(1, total + 1):
        asked = absentees.present(number, [1, 2])
        assert 2 in asked
        if 1 in asked:
            asked_in.append(number)
        absentees.note(number, asked, [node for node in asked if node == 2 or number not in silent])
    return asked_in


def test_a_silent_node_costs_fewer_and_fewer_deadlines() -> None:
    assert rounds_asked(set(range(1, 100)), 40) == [1, 2, 4, 7, 12, 21, 30, 39]


def test_a_node_that_answers_again_is_asked_every_round() -> None:
    assert rounds_asked({1, 2}, 8) == [1, 2, 4, 5, 6, 7, 8]


def test_one_missed_deadline_costs_only_the_rest_of_the_round() -> None:
    absentees = Absentees()
    assert absentees.note(3, [1, 2], [2]) == []
    assert absentees.present(3, [1, 2]) == [2]
    assert absentees.present(4, [1, 2]) == [1, 2]


def test_two_silences_in_one_round_count_once() -> None:
    absentees = Absentees()
    for _ in range(3):
        assert absentees.note(1, [1], []) == []
    assert absentees.note(2, [1], []) == [1]


@given(st.sets(st.integers(1, 60)))
def test_a_node_that_finally_answers_is_never_forgotten(silent: set[int]) -> None:
    assert any(number > 60 for number in rounds_asked(silent, 60 + 9))
