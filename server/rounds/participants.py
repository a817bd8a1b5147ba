"""The nodes of a run as the strategy sees them: their examples, how many count, which nodes do not answer.

Asks new nodes what they hold. Must not know what a round asks of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fednc.common.config.tables import RoundsSection
from fednc.common.wire.messages import HELLO
from fednc.server.aggregation.holdings import Declared, Holding, believed
from fednc.server.rounds.absentees import Absentees
from fednc.server.rounds.replies import Replies
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import ExamplesCapped, NodeAbsent


class Participants:
    """All nodes that the strategy deals with, and their announcements for the current stage."""

    def __init__(
        self,
        rounds: RoundsSection,
        replies: Replies,
        events: EventLog,
        declared: Callable[[int], Declared | None] = lambda _node: None,
    ) -> None:
        """`declared` is what a node declared when it attended."""
        self._rounds, self._replies, self._events, self._declared = rounds, replies, events, declared
        self._announced: dict[int, tuple[Holding, Declared | None]] = {}  # with its declaration at that time
        self._is_first = True
        self._absentees = Absentees()
        self._capped: set[int] = set()  # nodes already reported to count for less than they claim

    def enter(self, *, is_first: bool) -> None:
        """Begin a stage: all nodes are asked again. Only in the first one do declarations cover all classes."""
        self._announced, self._is_first = {}, is_first

    def forget(self, nodes: Iterable[int]) -> None:
        """Ask these nodes again: they may have other data now."""
        for node in nodes:
            self._announced.pop(node, None)

    def get_to_know(
        self,
        nodes: Iterable[int],
        server_round: int,
        grid: Grid,
        content: Callable[[], RecordDict],
        label_space: int,
        members_per_example: int = 1,
    ) -> None:
        """Ask new nodes, and nodes that have declared other data since, what they hold.

        Args:
            content: makes the question.
        """
        strangers = [node for node in nodes if not self._is_known(node)]
        if not strangers:
            return
        timeout_s = self._rounds.deadline_s
        for reply in self._replies.ask(grid, content(), strangers, HELLO, server_round, timeout_s):
            node = reply.metadata.src_node_id
            declared = self._declared(node)
            bound = declared if self._is_first else None
            read = partial(
                Holding.of, label_space=label_space, declared=bound, members_per_example=members_per_example
            )
            holding = self._replies.take(reply, read)
            if holding is not None:
                self._announced[node] = holding, declared
        self.note_answers(server_round, strangers)
        self._replies.settle()

    def _is_known(self, node: int) -> bool:
        return node in self._announced and not self.has_changed(node)

    def has_changed(self, node: int) -> bool:
        """Whether a known node has declared other data since its announcement."""
        return self._announced[node][1] != self._declared(node)

    def holding(self, node: int) -> Holding:
        """What a node announced; an empty holding if it did not."""
        return self._announced[node][0] if node in self._announced else Holding(0, 0, ())

    def examples(self, nodes: Iterable[int]) -> dict[int, int]:
        """The training examples that each of these nodes counts for, without nodes that hold none.

        0 means that the claim is not believed: the node is asked, but its replies are not used.
        """
        return self._counted({node: self.holding(node).examples for node in nodes})

    def held_out(self, nodes: Iterable[int]) -> dict[int, int]:
        """The held-out examples that each of these nodes counts for, without nodes that count for none."""
        counted = self._counted({node: self.holding(node).held_out for node in nodes})
        return {node: count for node, count in counted.items() if count}

    @property
    def examples_of_all(self) -> int:
        """The training examples of all known nodes, as far as they count."""
        return sum(self.examples(self._announced).values())

    def _counted(self, claims: Mapping[int, int]) -> dict[int, int]:
        """See `believed`. Reports each node that counts for less than it claims once."""
        claims = {node: claim for node, claim in claims.items() if claim}
        counted = believed(claims, self._rounds.max_examples)
        for node in [node for node in claims if counted[node] < claims[node] and node not in self._capped]:
            self._capped.add(node)
            name, claimed = self._replies.name_of(node), claims[node]
            text = (
                f"{name} claims {claimed} examples but counts for {counted[node]}: the claim is far above the "
                "others, or above rounds.max_examples. If it is true, set rounds.max_examples"
            )
            self._events.emit(ExamplesCapped(text=text, node=name, claimed=claimed, counted=counted[node]))
        return counted

    def present(self, server_round: int, nodes: Iterable[int]) -> list[int]:
        """The nodes of `nodes` that are asked in this round, without those that lately missed deadlines."""
        return self._absentees.present(server_round, nodes)

    def note_answers(self, server_round: int, asked: Collection[int]) -> None:
        """Note the end of an exchange. Reports nodes that will be left out of rounds for not answering."""
        for node in self._absentees.note(server_round, asked, self._replies.answered):
            name, rounds = self._replies.name_of(node), self._absentees.resting(node)
            text = f"{name} is connected but does not answer; the next {rounds} rounds run without it"
            self._events.emit(NodeAbsent(text=text, node=name, rounds=rounds))
