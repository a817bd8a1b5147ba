"""One exchange outside the rounds: every client is asked once for additive sums, which are totalled exactly.

Used before round 1 (`data_sums.py`) and after the last round (`after_rounds.py`). Knows no meaning of the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fednc.common import fault_injection
from fednc.common.errors import ProtocolError, StaleError
from fednc.common.tasks.api import add_stats
from fednc.common.tasks.metrics import Stats
from fednc.server.rounds.replies import Content
from fednc.server.rounds.reply_contents import of_fewer
from fednc.server.rounds.strategy import FrameStrategy

_TRIES = 3  # as for a round


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked.

    Attributes:
        kind: type of the message.
        server_round: the round that the model belongs to; absences are noted in it.
        read: the checked sums of a reply to a node that announced so many examples; None if it withholds them.
        point: where tests inject faults, before an answer is used.
        added: called with each node whose sums count, its reply and its own sums.
    """

    kind: str
    server_round: int
    content: Content
    read: Callable[[RecordDict, int], Stats | None]
    point: str
    added: Callable[[int, RecordDict, Stats], None] = lambda _node, _content, _sums: None


class Total(Protocol):
    """Adds up the sums of clients, so that their order does not matter."""

    def add(self, sums: Stats) -> None:
        """Add the sums of one client."""

    def value(self) -> Stats:
        """The totals so far."""


class PooledStats:
    """Adds statistics of the task's metrics, which may be infinite; their terms make any order exact."""

    def __init__(self) -> None:
        self._stats: Stats = {}

    def add(self, sums: Stats) -> None:
        """See Total."""
        add_stats(self._stats, sums)

    def value(self) -> Stats:
        """See Total."""
        return dict(self._stats)


@dataclass
class Answers:
    """What clients said so far.

    Attributes:
        added: nodes whose sums are in the total. withheld: nodes that sent none.
        diverged: whether most clients sent values that are not finite or out of bounds.
    """

    total: Total
    added: set[int] = field(default_factory=set)
    withheld: set[int] = field(default_factory=set)
    diverged: bool = False

    @property
    def nodes(self) -> set[int]:
        """Nodes that need not be asked again."""
        return self.added | self.withheld


def ask_once(
    strategy: FrameStrategy,
    grid: Grid,
    question: Question,
    claims: Mapping[int, int],
    counted: Mapping[int, int],
    answers: Answers,
) -> None:
    """Ask the nodes of `claims` that have not answered yet. A node without a usable answer costs nothing else.

    Args:
        claims: the examples that each node announced.
        counted: the examples that each node counts for.
        answers: is added to.
    """
    replies = strategy.replies
    nodes: Iterable[int] = [node for node in claims if node not in answers.nodes]
    timeout_s = strategy.run.rounds.deadline_s
    group = question.server_round
    for reply in replies.ask(grid, question.content, nodes, question.kind, group, timeout_s):
        node = reply.metadata.src_node_id
        use = partial(_take, strategy, question, answers, node, claims[node], counted.get(node, 0))
        replies.take(reply, use)
    strategy.clients.note_answers(max(1, question.server_round), list(nodes))
    answers.diverged = replies.settle()


def ask_until_quorum(strategy: FrameStrategy, grid: Grid, question: Question, answers: Answers) -> bool:
    """Ask all connected clients about their training data; one that fails again only while too few have answered.

    Returns:
        Whether enough have answered, in at most three tries. False too if most sent unusable values.
    """
    for _ in range(_TRIES):
        counted = strategy.clients.examples([*strategy.holders(grid), *answers.nodes])
        claims = {node: strategy.clients.holding(node).examples for node, count in counted.items() if count}
        ask_once(strategy, grid, question, claims, counted, answers)
        if answers.diverged:
            return False
        if len(answers.nodes) >= strategy.quorum:
            return True
        strategy.clients.forget(strategy.replies.failed)
    return False


def _take(
    strategy: FrameStrategy,
    question: Question,
    answers: Answers,
    node: int,
    announced: int,
    counted: int,
    content: RecordDict,
) -> None:
    fault_injection.at(question.point)
    try:
        sums = question.read(content, announced)
    except ProtocolError as e:
        if strategy.clients.has_changed(node):
            raise StaleError(str(e)) from e
        raise
    if sums is None or not counted:
        answers.withheld.add(node)
        return
    answers.total.add(of_fewer(sums, counted, announced))
    answers.added.add(node)
    question.added(node, content, sums)
