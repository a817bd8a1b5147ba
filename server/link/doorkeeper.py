"""Keeps nodes out that an operator dropped, or that the server quarantined for bad messages.

Checked when a node attends; counts rejected messages. Both lists survive restarts. Runs on the event loop; knows
no calls and no rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fednc.common.errors import ProtocolError, RefusedError
from fednc.common.files import remedy
from fednc.common.security.credentials import Role
from fednc.server.access.bans import BanList
from fednc.server.access.identity import FORBIDDEN, Identity, Refusal
from fednc.server.link.message_limits import InvalidError
from fednc.server.link.nodes import MOST_NODES, Node, NodeState, Roster
from fednc.server.storage.event_log import EventLog, NodeEvents
from fednc.server.storage.events import (
    DiskProblem,
    MessageRejected,
    NodeDropped,
    NodeQuarantined,
    NodeReadmitted,
    NodeTurnedAway,
)


class Doorkeeper:
    """Refuses dropped nodes, counts messages that no honest node sends, quarantines nodes that send many."""

    def __init__(
        self,
        most: int,
        roster: Roster,
        events: EventLog,
        node_events: NodeEvents,
        expel: Callable[[Node, Refusal], None],
    ) -> None:
        """A node is quarantined after `most` rejected messages or replies; 0: never."""
        self._most, self._roster, self._expel = most, roster, expel
        self._events, self._node_events = events, node_events
        self.dropped, self.quarantined = BanList(), BanList()
        self.turned_away: dict[str, str] = {}  # why, by name; those who have joined since are not in it
        self.rejections: Counter[str] = Counter()  # rejected messages, by call and field

    def keep_in(self, folder: Path) -> None:
        """Load the lists of a run that was restarted, and write every later change to `folder`."""
        self.dropped.keep_in(folder / "dropped.json")
        self.quarantined.keep_in(folder / "quarantine.json")

    def check(self, name: str) -> None:
        """Raises RefusedError for a dropped name, Refusal for one in quarantine."""
        if self.dropped.reason(name) is not None:
            raise RefusedError(
                f"{name!r} was dropped by an operator; it can attend again after an operator readmits it"
            )
        if reason := self.quarantined.reason(name):
            raise Refusal(f"{name!r} is in quarantine until an operator readmits it: {reason}", FORBIDDEN)

    def turn_away(self, name: str, problem: str) -> None:
        """Tell people why a client may not join, once for each reason: it may be started again and again."""
        is_news = self.turned_away.get(name) != problem
        if is_news and (name in self.turned_away or len(self.turned_away) < MOST_NODES):  # names may cost nothing
            self.turned_away[name] = problem
            text = f"refused {name}: {problem}"
            self._node_events.emit(NodeTurnedAway(text=text, node=name, problem=problem))

    def drop(self, node: Node, reason: str) -> None:
        """Ban a node until it is readmitted, and end its attendance. Raises OSError: lost at a restart."""
        self._expel(node, Refusal(reason, FORBIDDEN))
        node.ban(NodeState.DROPPED, reason)
        self._events.emit(NodeDropped(text=f"{node.name}: {reason}", node=node.name))
        self.dropped.add(node.name, reason)

    def readmit(self, name: str, who: str) -> bool:
        """Readmit a name; False if it was not banned. Raises OSError: lost at a restart."""
        lists = [each for each in (self.dropped, self.quarantined) if each.reason(name) is not None]
        node = self._roster.by_name(name)
        if node:
            node.readmit()
        if lists:
            self._events.emit(NodeReadmitted(text=f"{who} readmits {name}", node=name, operator=who))
        for each in lists:
            each.lift(name)
        return bool(lists)

    def reject_message(self, node: Node, call: str, error: ProtocolError) -> None:
        """Count a message or reply that no honest node sends; quarantine the node after too many."""
        field = error.field if isinstance(error, InvalidError) else "content"
        self.rejections[f"{call}.{field}"] += 1
        node.count_rejection()
        if node.state is NodeState.QUARANTINED:
            return
        text = f"rejected a message of {node.name} ({call}): {error}"
        self._node_events.emit(MessageRejected(text=text, node=node.name, call=call, field=field))
        if self._most and node.rejections >= self._most:
            self._quarantine(node, f"{node.rejections} of its messages were rejected, the last: {error}")

    def reject_reply(self, node_id: int, problem: str) -> None:
        """Count a reply whose content the strategy rejected."""
        if node := self._roster.by_id(node_id):
            self.reject_message(node, "Upload", ProtocolError(problem))

    def reject_undecodable(self, caller: Identity, call: str) -> None:
        """Count a message that cannot be decoded, against the caller's node if the caller is authenticated."""
        holder = caller.holder
        node = self._roster.by_name(holder.name) if holder and holder.role is Role.NODE else None
        if node:
            self.reject_message(node, call, InvalidError("message", "it cannot be decoded"))
        else:
            self.rejections[f"{call}.message"] += 1

    def _quarantine(self, node: Node, reason: str) -> None:
        text = f"{node.name} is in quarantine: {reason}"
        self._expel(node, Refusal(f"{text}. An operator can readmit it", FORBIDDEN))
        node.ban(NodeState.QUARANTINED, reason)
        self._events.emit(NodeQuarantined(text=text, node=node.name, reason=reason))
        try:
            self.quarantined.add(node.name, reason)
        except OSError as e:
            text = f"this quarantine will be lost at a restart: {e.strerror}; {remedy(e)}"
            self._events.emit(DiskProblem(text=text, node=node.name, errno=e.errno))
