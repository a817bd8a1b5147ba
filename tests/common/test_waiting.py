"""The waiting helper: when it returns, what it returns, and how a deadline is moved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from fednc.common.waiting import Deadline, wait_until, wait_until_async

Wait = Callable[[Callable[[], object], Deadline, float], object]


def in_a_loop(look: Callable[[], object], deadline: Deadline, every_s: float) -> object:
    return asyncio.run(wait_until_async(look, deadline, every_s))


@pytest.fixture(params=[wait_until, in_a_loop], ids=["thread", "loop"])
def wait(request: pytest.FixtureRequest) -> Wait:
    found: Wait = request.param
    return found


def test_a_result_that_is_there_is_returned_without_waiting(wait: Wait) -> None:
    assert wait(lambda: "here", Deadline(0), 60) == "here"


def test_a_later_result_is_returned(wait: Wait) -> None:
    answers = iter([None, 0, "here"])
    assert wait(lambda: next(answers), Deadline(60), 0.001) == "here"


def test_it_ends_at_the_deadline_with_the_last_answer_and_looks_once_more_there(wait: Wait) -> None:
    looked_at: list[float] = []

    def look() -> list[str]:
        looked_at.append(time.monotonic())
        return []

    started = time.monotonic()
    assert wait(look, Deadline(0.05), 60) == []
    assert len(looked_at) == 2
    assert looked_at[1] - started >= 0.05


def test_a_deadline_that_is_restarted_gives_more_time(wait: Wait) -> None:
    deadline, answers = Deadline(0.02), iter([False] * 8 + [True])

    def look() -> bool:
        deadline.restart()
        return next(answers)

    assert wait(look, deadline, 0.005)


def test_without_a_timeout_the_deadline_never_comes() -> None:
    deadline = Deadline()
    assert not deadline.has_passed
    deadline.restart()
    assert deadline.left_s == float("inf")


def test_an_exception_of_look_ends_the_wait(wait: Wait) -> None:
    def look() -> bool:
        raise LookupError

    with pytest.raises(LookupError):
        wait(look, Deadline(), 60)
