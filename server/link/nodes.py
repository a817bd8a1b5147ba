"""Who is here: every node by name, what it holds, how it does. Lives on the event loop; no gRPC, no I/O."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from fednc.common.errors import RefusedError
from fednc.common.flower_adapter import node_id
from fednc.common.tasks.api import Part
from fednc.protos import federation_pb2 as pb
from fednc.server.access.identity import Identity, Refusal

# An id stands for its assignment, which is made when it goes; None: the node attends over another connection now.
Outbox = asyncio.Queue[pb.ServerEvent | pb.AssignmentId | Refusal | None]
MOST_NODES = 10_000  # where names cost nothing, somebody may try to fill the memory with them


class NodeState(StrEnum):
    """Where a node stands."""

    PREPARING = "preparing"  # attending; loads its data
    READY = "ready"
    PAUSED = "paused"  # by its owner: holds what it is at, wants no more
    LEAVING = "leaving"  # finishes what it is at, wants no more
    UNFIT = "unfit"  # attending, but said why it cannot take part
    LOST = "lost"
    DROPPED = "dropped"  # by an operator
    QUARANTINED = "quarantined"  # by the server: what it sends is rubbish
    REHEARSING = "rehearsing"  # a dry run; in no roster


@dataclass(eq=False)
class Node:
    """One client, for as long as the server lives; attendances come and go."""

    name: str
    node_id: int
    state: NodeState = NodeState.LOST
    attendance: bytes = b""
    instance: bytes = b""
    declaration: pb.Declaration | None = None  # of this attendance, the latest
    declarations: int = 0  # of this attendance
    identity: Identity = field(default_factory=Identity)
    part: Part | None = None
    examples: int = 0
    held_out: int = 0
    class_counts: tuple[int, ...] = ()
    device: str = ""
    pid: int = 0
    problem: str = ""
    rejections: int = 0  # messages and replies of it that were refused
    calls: int = 0  # under way, the attending one left out
    progress: pb.Progress | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    last_seen: float = field(default_factory=time.monotonic)
    silent_ticks: int = 0  # of `heartbeat.py`
    outbox: Outbox = field(default_factory=asyncio.Queue)
    given: tuple[Collection[bytes], ...] = ()  # blobs of the last few assignments of this attendance

    @property
    def declared(self) -> tuple[int, int, tuple[int, ...]] | None:
        """Examples, held-out ones and examples per class, as declared last; None before that."""
        return (self.examples, self.held_out, self.class_counts) if self.declaration else None

    @property
    def is_here(self) -> bool:
        """Whether it attends."""
        return self.state not in (NodeState.LOST, NodeState.DROPPED, NodeState.QUARANTINED)

    def touch(self) -> None:
        """Note a sign of life."""
        self.last_seen, self.silent_ticks = time.monotonic(), 0


class Roster:
    """All nodes ever seen by this server, by name and by attendance."""

    def __init__(self, parts: int = 0) -> None:
        self._parts = parts  # of the simulated split; 0: every client has data of its own
        self._by_name: dict[str, Node] = {}
        self._by_id: dict[int, Node] = {}
        self._by_attendance: dict[bytes, Node] = {}
        self._rehearsing: dict[str, Node] = {}  # dry runs under way

    def admit(self, name: str, instance: bytes, wanted: Part | None) -> Node:
        """A fresh attendance for `name`.

        Raises:
            RefusedError: another process attends under that name, or no part of the split is free.
        """
        node = self._by_name.get(name)
        if node is None and len(self._by_name) >= MOST_NODES:
            raise RefusedError(f"the server knows {MOST_NODES} names and takes no more")
        if node and node.is_here and not hmac.compare_digest(node.instance, instance):
            raise RefusedError(f"the name {name!r} is taken by a client that is here; choose another with --name")
        if node is None:
            node = self._know(Node(name, node_id(name), part=self._free_part(name, wanted)))
        elif wanted is not None and node.part != wanted:
            node.part = self._free_part(name, wanted)
        self._begin_attendance(node, instance)
        return node

    def rehearse(self, name: str, instance: bytes, wanted: Part | None) -> Node:
        """A node for a dry run: it gets what it would get, and takes nothing from anybody.

        Raises:
            RefusedError: another dry run of that name is under way.
        """
        under_way = self._rehearsing.get(name)
        if under_way and not hmac.compare_digest(under_way.instance, instance):
            raise RefusedError(f"a dry run of {name!r} is under way; wait for its end, or choose another --name")
        if not under_way and len(self._rehearsing) >= MOST_NODES:
            raise RefusedError(
                f"{MOST_NODES} dry runs are under way and the server takes no more; try again later"
            )
        if under_way:
            under_way.outbox.put_nowait(None)
        known = self._by_name.get(name)
        part = wanted or (known.part if known else None) or (Part(0, self._parts) if self._parts else None)
        node = Node(name, node_id(name), NodeState.REHEARSING, instance=instance, part=part)
        self._rehearsing[name] = node
        return node

    def end_rehearsal(self, node: Node) -> None:
        """A dry run is over; another one of its name may have begun meanwhile."""
        if self._rehearsing.get(node.name) is node:
            del self._rehearsing[node.name]

    def restore(self, parts: dict[str, int]) -> None:
        """Know again, after a restart, who took part and which part of the split each name keeps."""
        for name, index in parts.items():
            part = Part(index, self._parts) if self._parts else None
            self._know(Node(name, node_id(name), part=part))

    def kept_parts(self) -> dict[str, int]:
        """What `restore` wants."""
        return {n.name: n.part.index if n.part else 0 for n in self._by_name.values() if n.examples}

    def _begin_attendance(self, node: Node, instance: bytes) -> None:
        self._by_attendance.pop(node.attendance, None)
        node.outbox.put_nowait(None)
        node.attendance, node.instance = secrets.token_bytes(16), instance
        node.declaration, node.declarations, node.given = None, 0, ()
        node.state, node.outbox, node.problem = NodeState.PREPARING, asyncio.Queue(), ""
        node.touch()
        self._by_attendance[node.attendance] = node

    def _free_part(self, name: str, wanted: Part | None) -> Part | None:
        if not self._parts:
            if wanted:
                raise RefusedError("this run has no [split]: each client's data is its own; leave --partition out")
            return None
        taken = {n.part.index: n.name for n in self._by_name.values() if n.part and n.name != name}
        if wanted:
            return self._wanted_part(wanted, taken)
        free = [i for i in range(self._parts) if i not in taken]
        if not free:
            raise RefusedError(
                f"all {self._parts} parts of the split are taken: {', '.join(sorted(taken.values()))}"
            )
        return Part(free[0], self._parts)

    def _wanted_part(self, wanted: Part, taken: dict[int, str]) -> Part:
        if wanted.of != self._parts or not 0 <= wanted.index < self._parts:
            raise RefusedError(
                f"--partition {wanted.index}/{wanted.of} does not fit: the run's split has parts "
                f"0/{self._parts} to {self._parts - 1}/{self._parts}"
            )
        if wanted.index in taken:
            raise RefusedError(f"part {wanted.index}/{wanted.of} is taken by {taken[wanted.index]!r}")
        return wanted

    def by_attendance(self, attendance: bytes) -> Node | None:
        """The node that holds `attendance`, if it is still current."""
        return self._by_attendance.get(attendance)

    @property
    def attending(self) -> int:
        """How many attendances are open."""
        return len(self._by_attendance)

    def _know(self, node: Node) -> Node:
        self._by_name[node.name] = self._by_id[node.node_id] = node
        return node

    def by_name(self, name: str) -> Node | None:
        """The node of that name."""
        return self._by_name.get(name)

    def by_id(self, wanted: int) -> Node | None:
        """The node with a Flower node id."""
        return self._by_id.get(wanted)

    def lose(self, node: Node, attendance: bytes) -> bool:
        """End an attendance; False where the node has begun another one since."""
        self._by_attendance.pop(attendance, None)
        if node.attendance != attendance or not node.is_here:
            return False
        node.state, node.progress = NodeState.LOST, None
        return True

    def nodes(self) -> list[Node]:
        """Everybody, by name."""
        return [self._by_name[name] for name in sorted(self._by_name)]

    def ready(self) -> list[Node]:
        """Those who can work, by name."""
        return [n for n in self.nodes() if n.state is NodeState.READY]
