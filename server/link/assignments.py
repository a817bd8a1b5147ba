"""One piece of work, its content and its reply. Created by the grid, kept by the federation.

Knows neither gRPC nor the budget.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from flwr.app import Message

from fednc.common.flower_adapter import APP_FAILED, MESSAGE_UNKNOWN, NODE_LOST, REPLY_REJECTED
from fednc.common.wire import records
from fednc.common.wire.arrays import Buffer
from fednc.common.wire.framing import Parts
from fednc.common.wire.protocol import WHOLE_BYTES
from fednc.protos import federation_pb2 as pb
from fednc.server.link.nodes import Node
from fednc.server.link.upload_budget import Slot

__all__ = [
    "APP_FAILED",
    "MESSAGE_UNKNOWN",
    "NODE_LOST",
    "REPLY_REJECTED",
    "Batch",
    "Content",
    "Reply",
    "Work",
    "WorkKey",
    "key_of",
]

WorkKey = tuple[str, str, str, int, int, int]


def key_of(work_id: pb.AssignmentId) -> WorkKey:
    """A hashable key that identifies an assignment."""
    return (
        work_id.run_id,
        work_id.group_id,
        work_id.message_type,
        work_id.node_id,
        work_id.ordinal,
        work_id.attempt,
    )


class Content:
    """The content of an instruction, encoded once for all nodes it is sent to."""

    def __init__(self, manifest: pb.Manifest) -> None:
        self.sizes = {meta.digest: meta.size for meta in records.metas_of(manifest)}
        if manifest.HasField("packed"):  # one blob holds all arrays
            self.sizes = {manifest.packed.digest: manifest.packed.size}
        self.encoded = pb.Assignment(content=manifest).SerializeToString()  # to be joined with the other fields

    def along(self, given: Iterable[Collection[bytes]]) -> list[bytes]:
        """The blobs to send with the assignment: those that a node `given` others lacks, if they are small."""
        lacking = [digest for digest in self.sizes if not any(digest in each for each in given)]
        return lacking if sum(self.sizes[digest] for digest in lacking) <= WHOLE_BYTES else []


@dataclass(eq=False)
class Reply:
    """The outcome of one piece of work: a complete upload in its slot, or a failure."""

    work: Work
    manifest: pb.Manifest | None = None
    slot: Slot = field(default_factory=Slot)
    failure: pb.Failure | None = None


@dataclass(eq=False)
class Batch:
    """The work of one `send_and_receive`. Replies are read from another thread."""

    digests: list[bytes] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    replies: queue.SimpleQueue[Reply] = field(default_factory=queue.SimpleQueue)
    on_reply: Callable[[Reply], None] | None = None  # called on the event loop; replaces the queue

    def hold(self, digests: Iterable[bytes]) -> None:
        """Note the blobs that its work refers to."""
        self.digests = list(digests)

    def take(self, reply: Reply) -> None:
        """Deliver a reply or a failure."""
        (self.on_reply or self.replies.put)(reply)

    def clear(self) -> None:
        """Break the cycle between batch and works, so that the model is freed without garbage collection."""
        self.digests, self.works = [], []


@dataclass(eq=False)
class Work:
    """One assignment in progress at one node."""

    id: pb.AssignmentId
    node: Node
    instruction: Message
    content: Content
    batch: Batch
    slot: Slot = field(default_factory=Slot)
    damaged: int = 0  # number of uploads that arrived damaged

    def count_damage(self) -> int:
        """One more upload arrived damaged; how many did so far."""
        self.damaged += 1
        return self.damaged

    def event(self, blobs: Iterable[Buffer]) -> Parts:
        """The assignment as it is sent on the node's stream, with these blobs."""
        rest = pb.Assignment(id=self.id, blobs=map(bytes, blobs))
        return rest.SerializeToString(), self.content.encoded
