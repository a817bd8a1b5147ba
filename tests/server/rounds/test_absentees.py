"""Nodes that are connected and silent are asked less and less often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fednc.server.rounds.absentees import Absentees


def rounds_asked(silent: set[int], total: int) -> list[int]:
    """In which rounds node 1 is asked, of which it leaves `silent` unanswered; node 2 always answers."""
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


def test_who_answers_again_is_asked_every_round() -> None:
    assert rounds_asked({1, 2}, 8) == [1, 2, 4, 5, 6, 7, 8]


def test_one_missed_deadline_costs_the_rest_of_the_round_only() -> None:
    absentees = Absentees()
    assert absentees.note(3, [1, 2], [2]) == []
    assert absentees.present(3, [1, 2]) == [2]
    assert absentees.present(4, [1, 2]) == [1, 2]


def test_a_second_silence_in_one_round_is_no_second_round() -> None:
    absentees = Absentees()
    for _ in range(3):
        assert absentees.note(1, [1], []) == []
    assert absentees.note(2, [1], []) == [1]


@given(st.sets(st.integers(1, 60)))
def test_whoever_answers_in_the_end_is_never_forgotten(silent: set[int]) -> None:
    assert any(number > 60 for number in rounds_asked(silent, 60 + 9))
