"""Asks nodes and handles their replies: unusable ones are recorded by name, and the round goes on.

Used by the strategy and by the initialisation. Must not know what is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fednc.common.errors import ProtocolError, StaleError, UnusableValuesError
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import ReplyUnusable

T = TypeVar("T")
Content = RecordDict | Callable[[int], RecordDict]  # the same for all nodes, or that of each node
log = logging.getLogger("fednc.server")


class Replies:
    """Exchanges with clients over any grid.

    Attributes:
        failures: why clients failed in this round, by name. Only the first reason is kept, as it is the cause.
        failed: their node ids.
    """

    def __init__(
        self,
        events: EventLog,
        name_of: Callable[[int], str] = str,
        reject: Callable[[int, str], None] = lambda _node, _reason: None,
        reject_values: Callable[[int, str], None] | None = None,
    ) -> None:
        """`name_of` maps a Flower node id to a name; `reject` is called for replies that no honest node sends.

        `reject_values` is called for unusable values that few nodes sent, and is the same unless given.
        """
        self._events, self.name_of, self._reject = events, name_of, reject
        self._reject_values = reject_values or reject
        self.failures: dict[str, str] = {}
        self.failed: set[int] = set()
        self.answered: set[int] = set()  # nodes that answered in the current exchange
        self._used = 0  # usable replies in it
        self._unusable: dict[
            int, str
        ] = {}  # nodes whose values were not finite or out of bounds, with the problem

    def ask(
        self,
        grid: Grid,
        content: Content,
        nodes: Iterable[int],
        message_type: str,
        group: int,
        timeout_s: float,
    ) -> Iterator[Message]:
        """Send a content to all `nodes`; yield good replies as they arrive."""
        self.begin()
        messages = messages_to(grid, content, nodes, message_type, group)
        return self.good(grid.send_and_receive(messages, timeout=timeout_s))

    def begin(self) -> None:
        """Begin a new exchange."""
        self.answered, self._used, self._unusable = set(), 0, {}

    def settle(self) -> bool:
        """End the exchange. True if most clients sent unusable values, which means that the run has diverged.

        Otherwise the unusable values are counted against the nodes that sent them.
        """
        unusable, self._unusable = self._unusable, {}
        if len(unusable) > self._used:
            return True
        for node, problem in unusable.items():
            self._reject_values(node, problem)
        return False

    def good(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Yield replies with content; record the others."""
        for reply in replies:
            self.answered.add(reply.metadata.src_node_id)
            if reply.has_error():
                self._note(reply, reply.error.reason or f"error {reply.error.code}")
            else:
                yield reply

    def take(self, reply: Message, use: Callable[[RecordDict], T]) -> T | None:
        """The result of `use` on the reply; None if it cannot be used, which is recorded.

        An error costs only this reply. Content that no honest node sends is counted against the node at once;
        values that are not finite only at the end of the exchange, see `settle`.
        """
        node = reply.metadata.src_node_id
        try:
            used = use(reply.content)
        except StaleError as e:
            self._note(reply, str(e))
        except UnusableValuesError as e:
            self._note(reply, str(e))
            self._unusable[node] = str(e)
        except ProtocolError as e:
            self._note(reply, str(e))
            self._reject(node, str(e))
        except Exception as e:
            log.exception("a reply of %s could not be handled", self.name_of(node))
            self._note(reply, f"{type(e).__name__} while it was handled")
        else:
            self._used += 1
            return used
        return None

    @property
    def reasons(self) -> str:
        """All failures in one line."""
        return "; ".join(f"{name}: {reason}" for name, reason in self.failures.items()) or "no client answered"

    def forget_failures(self) -> None:
        """Start a new record of failures for a new round."""
        self.failures, self.failed = {}, set()

    def _note(self, reply: Message, reason: str) -> None:
        node = reply.metadata.src_node_id
        self.failed.add(node)
        self.failures.setdefault(self.name_of(node), reason)
        text = f"no {reply.metadata.message_type} from {self.name_of(node)}: {reason}"
        self._events.emit(ReplyUnusable(text=text, node=self.name_of(node), reason=reason))


def messages_to(
    grid: Grid, content: Content, nodes: Iterable[int], message_type: str, group: int
) -> list[Message]:
    """One message per node. A list, because stock Flower's grid iterates it repeatedly."""
    return [
        grid.create_message(
            content if isinstance(content, RecordDict) else content(node), message_type, node, str(group)
        )
        for node in nodes
    ]
