"""The heart of the link: who is here, what they are working on, which replies have arrived.

Everything runs on the event loop. The servicer (gRPC) calls it from one side, the grid (the strategy's thread)
from the other. Knows nothing of gRPC, and nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
import logging
import queue
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message

from fednc.common import records
from fednc.common.arrays import Buffer
from fednc.common.config import RunConfig
from fednc.common.errors import ProtocolError
from fednc.common.tasks.base import Part
from fednc.protos import federation_pb2 as pb
from fednc.server.blobs import BlobStore
from fednc.server.control import DropList, RunControl
from fednc.server.events import EventLog
from fednc.server.identity import FORBIDDEN, Refusal
from fednc.server.roster import Node, NodeState, Roster
from fednc.server.spool import Budget, SpooledUpload

# Flower's own error codes, so that foreign strategies read them as they are used to.
APP_FAILED, NODE_LOST, REPLY_REJECTED = 2, 5, 4

_STANDINGS = {pb.Declaration.PAUSED: NodeState.PAUSED, pb.Declaration.LEAVING: NodeState.LEAVING}

WorkKey = tuple[str, str, str, int, int, int]


def key_of(work_id: pb.AssignmentId) -> WorkKey:
    """What makes an assignment itself."""
    return (
        work_id.run_id, work_id.group_id, work_id.message_type, work_id.node_id, work_id.ordinal, work_id.attempt
    )  # fmt: skip


@dataclass(eq=False)
class Reply:
    """What came of one piece of work: a committed upload, or a failure."""

    work: Work
    manifest: pb.Manifest | None = None
    upload: SpooledUpload | None = None
    failure: pb.Failure | None = None


@dataclass(eq=False)
class Batch:
    """The work of one `send_and_receive`; replies are read from another thread."""

    digests: list[bytes] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    replies: queue.SimpleQueue[Reply] = field(default_factory=queue.SimpleQueue)


@dataclass(eq=False)
class Work:
    """One assignment under way at one node."""

    id: pb.AssignmentId
    node: Node
    instruction: Message
    content: pb.Manifest
    batch: Batch
    upload: SpooledUpload | None = None

    @property
    def event(self) -> pb.ServerEvent:
        """The assignment as it goes down the node's stream."""
        return pb.ServerEvent(assignment=pb.Assignment(id=self.id, content=self.content))


class Federation:
    """State of one run's link."""

    def __init__(self, run_id: str, run: RunConfig, spool: Path, events: EventLog, *, attempt: int = 0) -> None:
        """`attempt` counts the starts of this run's server: work handed out before a restart is stale."""
        self.run_id, self.run, self.events, self.attempt = run_id, run, events, attempt
        self.earlier_bytes = (0, 0)  # up and down, before a restart
        self.roster = Roster(run.split.parts if run.split else 0)
        self.blobs = BlobStore()
        self.control, self.dropped = RunControl(), DropList()
        self.budget = Budget(run.server.ingest_mib << 20)
        self._background: set[asyncio.Task[None]] = set()
        self.over: pb.RunOver | None = None
        self._spool = spool
        self._works: dict[WorkKey, Work] = {}
        self._committed: deque[WorkKey] = deque(maxlen=4096)
        spool.mkdir(parents=True, exist_ok=True)

    # ---- nodes come and go ---------------------------------------------------------------------------------

    def admit(self, request: pb.AttendRequest) -> Node:
        """A node attends. Raises RefusedError."""
        wanted = Part(request.part.index, request.part.of) if request.HasField("part") else None
        self.dropped.check(request.name)
        if request.dry_run:
            node = self.roster.rehearse(request.name, wanted)
        else:
            node = self.roster.admit(request.name, request.instance, wanted)
        node.outbox.put_nowait(pb.ServerEvent(welcome=self._welcome(node)))
        if self.over:
            node.outbox.put_nowait(pb.ServerEvent(run_over=self.over))
        part = f", part {node.part.index}/{node.part.of}" if node.part else ""
        verb = "looks in (dry run)" if request.dry_run else "attends"
        self.events.emit("attend", f"{node.name} {verb}{part}", node=node.name)
        return node

    def _welcome(self, node: Node) -> pb.Welcome:
        part = pb.Part(index=node.part.index, of=node.part.of) if node.part else None
        return pb.Welcome(
            node_id=node.node_id,
            session=node.session,
            run_id=self.run_id,
            run_json=self.run.model_dump_json(exclude={"server"}),  # its paths are nobody else's business
            part=part,
        )

    def declare(self, node: Node, declaration: pb.Declaration) -> None:
        """A node says what it holds: it is ready, or says why it is not."""
        node.device, node.pid = declaration.device, declaration.pid
        node.examples, node.held_out = declaration.examples, declaration.held_out
        node.class_counts = tuple(declaration.class_counts)
        if declaration.problem:
            node.state, node.problem = NodeState.UNFIT, declaration.problem
            text = f"{node.name} cannot take part: {declaration.problem}"
            self.events.emit("unfit", text, level=logging.WARNING, node=node.name, problem=declaration.problem)
            return
        node.state = _STANDINGS.get(declaration.standing, NodeState.READY)
        if node.state is NodeState.READY:
            self.events.emit(
                "ready", f"{node.name} is ready: {node.examples} examples on {node.device}", node=node.name,
                examples=node.examples, class_counts=list(node.class_counts), pid=node.pid, device=node.device,
            )  # fmt: skip
            for work in self._works_of(node):
                node.outbox.put_nowait(work.event)
        else:
            self.events.emit(node.state, f"{node.name} is {node.state}", node=node.name)

    def depart(self, node: Node, session: bytes) -> None:
        """A node's attending stream ended. Its work waits `rejoin_s` for it, unless it said that it leaves."""
        wait_s = 0.0 if node.state is NodeState.LEAVING else self.run.rounds.rejoin_s
        if node.state is NodeState.REHEARSING or not self.roster.lose(node, session):
            return
        if not self.over:
            self.events.emit("lost", f"{node.name} is gone", level=logging.WARNING, node=node.name)
            asyncio.get_running_loop().call_later(wait_s, self._give_up, node)

    def expel(self, node: Node, refusal: Refusal) -> None:
        """End a node's attendance with a reason. Its work fails now: nobody waits for its return."""
        for work in self._works_of(node):
            self._fail(work, NODE_LOST, "NodeExpelled", f"{node.name}: {refusal.reason}")
        if node.is_here:
            self.depart(node, node.session)
        node.session = b""
        node.outbox.put_nowait(refusal)

    def drop(self, node: Node, reason: str) -> None:
        """End a node's attendance until the run is over. Raises OSError: that cannot be written down."""
        self.dropped.add(node.name)
        self.expel(node, Refusal(reason, FORBIDDEN))
        node.state, node.problem = NodeState.DROPPED, reason
        self.events.emit("drop", f"{node.name}: {reason}", level=logging.WARNING, node=node.name)

    def _give_up(self, node: Node) -> None:
        if node.state is NodeState.LOST:
            for work in self._works_of(node):
                self._fail(work, NODE_LOST, "NodeLost", f"{node.name} was lost and did not come back in time")

    # ---- work goes out and comes back ----------------------------------------------------------------------

    def dispatch(self, batch: Batch, blobs: dict[bytes, Buffer]) -> None:
        """Send every work of the batch to its node, now."""
        self.blobs.hold(blobs)
        batch.digests = list(blobs)
        for work in batch.works:
            self._works[key_of(work.id)] = work
            if work.node.state in (NodeState.READY, NodeState.PAUSED):
                work.node.outbox.put_nowait(work.event)
            elif work.node.state in (NodeState.UNFIT, NodeState.DROPPED):
                self._fail(work, NODE_LOST, f"Node{work.node.state.title()}", work.node.problem)
            else:
                asyncio.get_running_loop().call_later(self.run.rounds.rejoin_s, self._give_up, work.node)

    def close(self, batch: Batch, reason: str) -> list[str]:
        """Nobody waits for this batch any more: cancel what is open, free its blobs. Who was still open?"""
        missing = []
        for work in batch.works:
            if self._works.pop(key_of(work.id), None):
                missing.append(work.node.name)
                work.node.outbox.put_nowait(pb.ServerEvent(cancel=pb.Cancel(id=work.id, reason=reason)))
                self._drop_upload(work)
        self.blobs.release(batch.digests)
        batch.digests = []
        return missing

    def at_work(self) -> dict[str, str]:
        """Whose replies are waited for, and the type of the message that each is at."""
        return {work.node.name: work.id.message_type for work in self._works.values()}

    def _works_of(self, node: Node) -> list[Work]:
        return [work for work in self._works.values() if work.node is node]

    def _fail(self, work: Work, code: int, kind: str, reason: str) -> None:
        self._drop_upload(work)
        self._settle(work, Reply(work, failure=pb.Failure(code=code, kind=kind, reason=reason)))

    def _settle(self, work: Work, reply: Reply) -> None:
        if self._works.pop(key_of(work.id), None):
            self._committed.append(key_of(work.id))
            work.node.progress = None
            work.batch.replies.put(reply)

    # ---- uploads -------------------------------------------------------------------------------------------

    def find_work(self, node: Node, work_id: pb.AssignmentId) -> Work | pb.Receipt:
        """The open work that an upload belongs to, or the receipt that ends it at once."""
        work = self._works.get(key_of(work_id))
        if work is not None and work.node is node:
            return work
        if key_of(work_id) in self._committed and work_id.node_id == node.node_id:
            return pb.Receipt(outcome=pb.Receipt.DUPLICATE, reason="this reply was settled before")
        return pb.Receipt(outcome=pb.Receipt.LATE, reason="nobody waits for this reply any more")

    async def open_upload(self, work: Work, header: pb.UploadHeader) -> SpooledUpload:
        """The upload to continue, or a new one once the budget has room for it.

        Raises:
            OSError: the spool cannot be written.
        """
        size = records.bulk_bytes(header.manifest)
        if work.upload and work.upload.upload_id == header.upload_id and work.upload.size == size:
            return work.upload
        self._drop_upload(work)
        await self.budget.acquire(size)
        name = f"{work.node.node_id}-{header.upload_id.hex()[:32]}"
        try:
            work.upload = SpooledUpload(self._spool / name, header.upload_id, size)
        except OSError:
            await self.budget.release(size)
            raise
        return work.upload

    def commit(self, work: Work, manifest: pb.Manifest) -> None:
        """The upload of `work` is complete and intact: hand it to whoever waits."""
        upload, work.upload = work.upload, None
        self._settle(work, Reply(work, manifest=manifest, upload=upload))

    def report_failure(self, work: Work, failure: pb.Failure) -> None:
        """The client says that its work failed."""
        text = f"{work.node.name} failed: {failure.kind}: {failure.reason}"
        self.events.emit("failure", text, level=logging.WARNING, node=work.node.name, failure=failure.kind)
        self._fail(work, failure.code or APP_FAILED, failure.kind, failure.reason)

    def reject(self, work: Work, error: ProtocolError) -> pb.Receipt:
        """The reply breaks the agreement: its work has failed, the round goes on."""
        text = f"rejected a reply of {work.node.name}: {error}"
        self.events.emit("rejected", text, level=logging.WARNING, node=work.node.name)
        self._fail(work, REPLY_REJECTED, "Rejected", str(error))
        return pb.Receipt(outcome=pb.Receipt.REJECTED, reason=str(error))

    def drop_damaged(self, work: Work) -> None:
        """Forget an upload that did not arrive as it was sent; the client sends it again."""
        self._drop_upload(work)

    def _drop_upload(self, work: Work) -> None:
        if work.upload:
            work.upload.discard()
            self.free(work.upload)
            work.upload = None

    def free(self, upload: SpooledUpload) -> None:
        """Give the upload's share of the budget back."""
        task = asyncio.ensure_future(self.budget.release(upload.size))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # ---- the end -------------------------------------------------------------------------------------------

    def traffic(self) -> tuple[int, int]:
        """Bytes up and down in the whole run, counted at the link."""
        nodes = self.roster.nodes()
        up, down = self.earlier_bytes
        return up + sum(n.bytes_up for n in nodes), down + sum(n.bytes_down for n in nodes)

    def finish(self, reason: str, *, failed: bool) -> None:
        """Tell everybody that the run is over."""
        self.over = pb.RunOver(reason=reason, failed=failed)
        self.control.stopping = True
        for node in self.roster.nodes():
            node.outbox.put_nowait(pb.ServerEvent(run_over=self.over))
