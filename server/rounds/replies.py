"""Asking nodes and taking what they answer: what is unusable is noted by name, and the round goes on.

Used by the strategy and by whatever else speaks with clients between rounds. Must not know what is asked.
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
log = logging.getLogger("fednc.server")


class Replies:
    """One conversation with clients over any grid.

    Attributes:
        failures: why clients failed since it was last emptied, by name; the first reason is the cause.
        failed: nodes among them.
    """

    def __init__(
        self,
        events: EventLog,
        name_of: Callable[[int], str] = str,
        reject: Callable[[int, str], None] = lambda _node, _reason: None,
    ) -> None:
        """`name_of` is the name behind a Flower node id; `reject` is told of a node whose reply cannot be used."""
        self._events, self.name_of, self._reject = events, name_of, reject
        self.failures: dict[str, str] = {}
        self.failed: set[int] = set()
        self.answered: set[int] = set()  # in the exchange under way
        self._used = 0  # replies of it that could be used
        self._unusable: dict[int, str] = {}  # nodes whose values were not finite, or out of bounds

    def ask(
        self,
        grid: Grid,
        content: RecordDict,
        nodes: Iterable[int],
        message_type: str,
        group: int,
        timeout_s: float,
    ) -> Iterator[Message]:
        """Good replies to one content sent to all `nodes`, as they arrive."""
        self.begin()
        return self.good(grid.send_and_receive(to(grid, content, nodes, message_type, group), timeout=timeout_s))

    def begin(self) -> None:
        """A new exchange."""
        self.answered, self._used, self._unusable = set(), 0, {}

    def settle(self) -> bool:
        """The exchange is over. Whether most clients sent values that cannot be used: then the run is the cause.

        Else they are counted against those who sent them.
        """
        unusable, self._unusable = self._unusable, {}
        if len(unusable) > self._used:
            return True
        for node, problem in unusable.items():
            self._reject(node, problem)
        return False

    def good(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Replies with content; the others are noted."""
        for reply in replies:
            self.answered.add(reply.metadata.src_node_id)
            if reply.has_error():
                self._note(reply, reply.error.reason or f"error {reply.error.code}")
            else:
                yield reply

    def take(self, reply: Message, use: Callable[[RecordDict], T]) -> T | None:
        """What `use` makes of the reply; None, noted, where it cannot be used.

        Whatever goes wrong costs this reply and nothing else. What nobody honest sends is counted against the
        node; values that are not finite only once the exchange is over, see `settle`.
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
        """The failures in one line."""
        return "; ".join(f"{name}: {reason}" for name, reason in self.failures.items()) or "nobody answered"

    def forget_failures(self) -> None:
        """Begin anew: a new record belongs to a new round."""
        self.failures, self.failed = {}, set()

    def _note(self, reply: Message, reason: str) -> None:
        node = reply.metadata.src_node_id
        self.failed.add(node)
        self.failures.setdefault(self.name_of(node), reason)
        text = f"no {reply.metadata.message_type} from {self.name_of(node)}: {reason}"
        self._events.emit(ReplyUnusable(text=text, node=self.name_of(node), reason=reason))


def to(grid: Grid, content: RecordDict, nodes: Iterable[int], message_type: str, group: int) -> list[Message]:
    """One content for all nodes. A list: stock Flower's grid walks through the messages several times."""
    return [grid.create_message(content, message_type, node, str(group)) for node in nodes]
