"""All nodes: their state, their attendance, what they hold. Runs on the event loop; no gRPC, no I/O."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fednc.common.errors import RefusedError
from fednc.common.flower_adapter import node_id
from fednc.common.tasks.api import Part
from fednc.common.wire.protocol import REMEMBERED_ASSIGNMENTS
from fednc.protos import federation_pb2 as pb
from fednc.server.access.identity import Identity, Refusal

# An id stands for its assignment, which is built when it is sent. None: the node attends over another connection.
Outbox = asyncio.Queue[pb.ServerEvent | pb.AssignmentId | Refusal | None]
MOST_NODES = 10_000  # without authentication, an attacker could fill the memory with names


class NodeState(StrEnum):
    """The state of a node."""

    PREPARING = "preparing"  # attending; loads its data
    READY = "ready"
    PAUSED = "paused"  # by its owner: holds its current work, takes no more
    LEAVING = "leaving"  # finishes its current work, takes no more
    UNFIT = "unfit"  # attending, but unable to take part for a reason that it gave
    LOST = "lost"
    DROPPED = "dropped"  # by an operator
    QUARANTINED = "quarantined"  # by the server, for bad messages
    REHEARSING = "rehearsing"  # a dry run; not listed among the nodes


_STANDINGS = {pb.Declaration.PAUSED: NodeState.PAUSED, pb.Declaration.LEAVING: NodeState.LEAVING}


@dataclass(eq=False)
class Node:
    """One client, for the lifetime of the server; its attendances come and go."""

    name: str
    node_id: int
    state: NodeState = NodeState.LOST
    attendance: bytes = b""
    instance: bytes = b""
    declaration: pb.Declaration | None = None  # the latest of this attendance
    declarations: int = 0  # in this attendance
    identity: Identity = field(default_factory=Identity)
    attends: pb.AttendRequest = field(default_factory=pb.AttendRequest)  # what it said when it came
    part: Part | None = None
    examples: int = 0
    held_out: int = 0
    class_counts: tuple[int, ...] = ()
    holdings: Mapping[str, int] = field(default_factory=dict)  # examples by part of the task
    device: str = ""
    pid: int = 0
    problem: str = ""
    rejections: int = 0  # of its messages and replies
    calls: int = 0  # in progress, not counting Attend
    progress: pb.Progress | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    last_seen: float = field(default_factory=time.monotonic)
    silent_ticks: int = 0  # see `heartbeat.py`
    outbox: Outbox = field(default_factory=asyncio.Queue)
    given: tuple[Collection[bytes], ...] = ()  # blobs of the last few assignments of this attendance

    @property
    def declared(self) -> tuple[int, int, tuple[int, ...]] | None:
        """(examples, held-out examples, examples per class) as last declared; None if never declared."""
        return (self.examples, self.held_out, self.class_counts) if self.declaration else None

    @property
    def is_here(self) -> bool:
        """Whether it attends."""
        return self.state not in (NodeState.LOST, NodeState.DROPPED, NodeState.QUARANTINED)

    # Changes of state. Nothing outside this file assigns to a node's fields.

    def begin_attendance(self, instance: bytes) -> None:
        """It attends again, as the process `instance`; forget what belonged to the attendance before."""
        self.attendance, self.instance = secrets.token_bytes(16), instance
        self.declaration, self.declarations, self.given = None, 0, ()
        self.state, self.outbox, self.problem = NodeState.PREPARING, asyncio.Queue(), ""
        self.touch()

    def begin_run(self) -> None:
        """The server's next run begins, in the same attendance; the node has yet to declare what it holds."""
        self.declaration, self.declarations, self.given = None, 0, ()
        self.state, self.problem, self.progress = NodeState.PREPARING, "", None

    def note_attends(self, request: pb.AttendRequest) -> None:
        """Note what it said when it came."""
        self.attends = request

    def identify(self, identity: Identity) -> None:
        """Note the identity of the attending caller."""
        self.identity = identity

    def end_attendance(self) -> None:
        """Nobody may act for it until it attends again."""
        self.attendance = b""

    def declare(self, declaration: pb.Declaration) -> None:
        """Take over what it declares: what it holds, and whether it can take part."""
        self.declaration = declaration
        self.device, self.pid = declaration.device, declaration.pid
        self.examples, self.held_out = declaration.examples, declaration.held_out
        self.class_counts = tuple(declaration.class_counts)
        self.holdings = dict(declaration.holdings)
        if declaration.problem:
            self.state, self.problem = NodeState.UNFIT, declaration.problem
        else:
            self.state = _STANDINGS.get(declaration.standing, NodeState.READY)

    def count_declaration(self) -> int:
        """One more declaration; how many there were in this attendance."""
        self.declarations += 1
        return self.declarations

    def lose(self) -> None:
        """Its attendance ended."""
        self.state, self.progress = NodeState.LOST, None

    def ban(self, state: NodeState, reason: str) -> None:
        """It was dropped or quarantined."""
        self.state, self.problem = state, reason

    def readmit(self) -> None:
        """It may attend again if it was banned."""
        if self.state in (NodeState.DROPPED, NodeState.QUARANTINED):
            self.state, self.problem, self.rejections = NodeState.LOST, "", 0

    def count_rejection(self) -> None:
        """One of its messages or replies was rejected."""
        self.rejections += 1

    def begin_call(self) -> None:
        """One of its calls begins."""
        self.calls += 1

    def end_call(self) -> None:
        """One of its calls is over."""
        self.calls -= 1

    def report(self, progress: pb.Progress | None) -> None:
        """Its progress with the current work; None if it has none."""
        self.progress = progress

    def count_up(self, size: int) -> None:
        """Count bytes that it sent."""
        self.bytes_up += size

    def count_down(self, size: int) -> None:
        """Count bytes that it was sent."""
        self.bytes_down += size

    def remember_given(self, digests: Collection[bytes]) -> None:
        """Note the blobs of an assignment; the client keeps those of the last few."""
        self.given = (*self.given, digests)[-REMEMBERED_ASSIGNMENTS:]

    def count_silence(self) -> None:
        """A tick of `heartbeat.py` has passed; `touch` starts again at 0."""
        self.silent_ticks += 1

    def touch(self) -> None:
        """Note that the node was heard."""
        self.last_seen, self.silent_ticks = time.monotonic(), 0


class Roster:
    """All nodes ever seen by this server, by name and by attendance."""

    def __init__(self, parts: int = 0) -> None:
        self._parts = parts  # of the simulated split; 0: every client has data of its own
        self._by_name: dict[str, Node] = {}
        self._by_id: dict[int, Node] = {}
        self._by_attendance: dict[bytes, Node] = {}
        self._rehearsing: dict[str, Node] = {}  # dry runs in progress

    def admit(self, name: str, instance: bytes, wanted: Part | None) -> Node:
        """Begin a new attendance for `name`.

        Raises:
            RefusedError: another process attends under that name, or no part of the split is free.
        """
        node = self._by_name.get(name)
        if node is None and len(self._by_name) >= MOST_NODES:
            raise RefusedError(f"the server has seen {MOST_NODES} names and accepts no more")
        if node and node.is_here and not hmac.compare_digest(node.instance, instance):
            raise RefusedError(f"the name {name!r} is in use by another client; choose another with --name")
        if node is None:
            node = self._know(Node(name, node_id(name), part=self._free_part(name, wanted)))
        elif wanted is not None and node.part != wanted:
            node.part = self._free_part(name, wanted)
        self._begin_attendance(node, instance)
        return node

    def rehearse(self, name: str, instance: bytes, wanted: Part | None) -> Node:
        """A node for a dry run: it is sent what a real node is sent, but takes no part of the split.

        Raises:
            RefusedError: another dry run of that name is in progress.
        """
        current = self._rehearsing.get(name)
        if current and not hmac.compare_digest(current.instance, instance):
            raise RefusedError(
                f"a dry run of {name!r} is in progress; wait until it ends, or choose another --name"
            )
        if not current and len(self._rehearsing) >= MOST_NODES:
            raise RefusedError(
                f"{MOST_NODES} dry runs are in progress and the server accepts no more; try again later"
            )
        if current:
            current.outbox.put_nowait(None)
        known = self._by_name.get(name)
        part = wanted or (known.part if known else None) or (Part(0, self._parts) if self._parts else None)
        node = Node(name, node_id(name), NodeState.REHEARSING, instance=instance, part=part)
        self._rehearsing[name] = node
        return node

    def end_rehearsal(self, node: Node) -> None:
        """A dry run is over; another one of that name may have begun in the meantime."""
        if self._rehearsing.get(node.name) is node:
            del self._rehearsing[node.name]

    def restore(self, parts: dict[str, int]) -> None:
        """After a restart, restore which nodes took part and which part of the split each one keeps."""
        for name, index in parts.items():
            part = Part(index, self._parts) if self._parts else None
            self._know(Node(name, node_id(name), part=part))

    def kept_parts(self) -> dict[str, int]:
        """The argument for `restore` after a restart."""
        return {n.name: n.part.index if n.part else 0 for n in self._by_name.values() if n.examples}

    def _begin_attendance(self, node: Node, instance: bytes) -> None:
        self._by_attendance.pop(node.attendance, None)
        node.outbox.put_nowait(None)
        node.begin_attendance(instance)
        self._by_attendance[node.attendance] = node

    def _free_part(self, name: str, wanted: Part | None) -> Part | None:
        if not self._parts:
            if wanted:
                raise RefusedError("this run has no [split], every client has its own data; leave --partition out")
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
        """The node with this attendance, if it is still current."""
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
        """End an attendance; False if the node has begun another one since."""
        self._by_attendance.pop(attendance, None)
        if node.attendance != attendance or not node.is_here:
            return False
        node.lose()
        return True

    def nodes(self) -> list[Node]:
        """All nodes, by name."""
        return [self._by_name[name] for name in sorted(self._by_name)]

    def ready(self) -> list[Node]:
        """Nodes that are ready to work, by name."""
        return [n for n in self.nodes() if n.state is NodeState.READY]
