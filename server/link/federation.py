"""The state of the link: the nodes, the work they were sent, the replies that have arrived.

Everything runs on the event loop. The servicer (gRPC) calls it from one side, the grid (the strategy's thread)
from the other. Knows nothing about gRPC or the content of messages.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from pathlib import Path

from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError, ProtocolError, RefusedError
from fednc.common.files import remedy
from fednc.common.flower_adapter import APP_ERROR
from fednc.common.tasks.api import Part
from fednc.common.wire.arrays import Buffer
from fednc.common.wire.framing import Parts
from fednc.common.wire.protocol import WHOLE_BYTES
from fednc.protos import federation_pb2 as pb
from fednc.server.access.compatible_versions import version_problem
from fednc.server.access.identity import UNAVAILABLE, Refusal
from fednc.server.access.open_calls import OpenCalls
from fednc.server.link import message_limits
from fednc.server.link.assignments import (
    APP_FAILED,
    NODE_LOST,
    REPLY_REJECTED,
    Batch,
    Reply,
    Work,
    WorkKey,
    key_of,
)
from fednc.server.link.blob_store import BlobStore
from fednc.server.link.doorkeeper import Doorkeeper
from fednc.server.link.message_limits import InvalidError
from fednc.server.link.nodes import Node, NodeState, Roster
from fednc.server.link.reply_schema import ReplySchema
from fednc.server.link.upload_budget import Intake
from fednc.server.storage.data_manifests import ManifestFile
from fednc.server.storage.event_log import EventLog, NodeEvents
from fednc.server.storage.events import (
    DiskProblem,
    ManifestIgnored,
    NodeAttends,
    NodeLeaving,
    NodeLost,
    NodePaused,
    NodeReady,
    NodeUnfit,
    UploadPutBack,
    WorkFailed,
)

_DAMAGED_UPLOADS = 3  # damaged uploads of one reply after which its work fails


class Federation:
    """The state of the link, of one run or of several that follow one another."""

    app = ""  # name and version of a foreign Flower app; empty: fednc's own

    def __init__(self, run_id: str, run: RunConfig, spool: Path, events: EventLog, *, attempt: int = 0) -> None:
        """`attempt` counts the starts of this run's server: replies to work sent before a restart are stale."""
        self.run_id, self.run, self.events, self.attempt = run_id, run, events, attempt
        self._earlier_bytes = (0, 0)  # up and down, before a restart
        self.roster = Roster(run.split.parts if run.split else 0)
        self.blobs = BlobStore()
        self._node_events = NodeEvents(events)
        self.door = Doorkeeper(run.server.quarantine_after, self.roster, events, self._node_events, self.expel)
        self.manifests = ManifestFile()
        self.intake = Intake(spool, run.server.ingest_mib << 20)
        self.calls = OpenCalls()
        self.schema: ReplySchema | None = None  # the form of replies, if the strategy has set it
        self.over: pb.RunOver | None = None
        self._works: dict[WorkKey, Work] = {}
        self._committed: deque[WorkKey] = deque(maxlen=4096)

    # ---- nodes come and go ---------------------------------------------------------------------------------

    def admit(self, request: pb.AttendRequest) -> Node:
        """A node attends. Raises RefusedError, Refusal."""
        wanted = Part(request.part.index, request.part.of) if request.HasField("part") else None
        self.door.check(request.name)
        if request.app != self.app:
            ours, theirs = self.app or "fednc's own", request.app or "fednc's own"
            raise RefusedError(
                f"this server runs the app {ours}, this client {theirs}: start it with the same --app"
            )
        if request.dry_run:
            node = self.roster.rehearse(request.name, request.instance, wanted)
        else:
            node = self.roster.admit(request.name, request.instance, wanted)
        node.note_attends(request)
        node.outbox.put_nowait(pb.ServerEvent(welcome=self._welcome(node)))
        if self.over:
            node.outbox.put_nowait(pb.ServerEvent(run_over=self.over))
        self.door.turned_away.pop(node.name, None)
        part = f", part {node.part.index}/{node.part.of}" if node.part else ""
        verb = "attends for a dry run" if request.dry_run else "attends"
        self._node_events.emit(NodeAttends(text=f"{node.name} {verb}{part}", node=node.name))
        return node

    def _welcome(self, node: Node) -> pb.Welcome:
        part = pb.Part(index=node.part.index, of=node.part.of) if node.part else None
        return pb.Welcome(
            node_id=node.node_id,
            attendance=node.attendance,
            run_id=self.run_id,
            run_json=self.run.for_clients(),
            part=part,
            liveness_s=self.run.server.liveness_s,
            whole_bytes=WHOLE_BYTES,
        )

    def declare(self, node: Node, declaration: pb.Declaration) -> None:
        """A node declares what it holds, and that it is ready or why it is not. Repeating it changes nothing."""
        was = node.declaration
        if was == declaration:
            return
        node.declare(declaration)
        if node.state is NodeState.UNFIT:
            text = f"{node.name} cannot take part: {declaration.problem}"
            self._node_events.emit(NodeUnfit(text=text, node=node.name, problem=declaration.problem))
            return
        if was is None or was.manifest != declaration.manifest:
            self._note_manifest(node, declaration.manifest)
        if node.state is NodeState.READY:
            self._node_events.emit(
                NodeReady(
                    text=f"{node.name} is ready: {_holds(declaration)}",
                    node=node.name,
                    examples=node.examples,
                    class_counts=node.class_counts,
                    pid=node.pid,
                    device=node.device,
                )
            )
            if was is None or was.standing != pb.Declaration.READY:  # it may have missed some work
                for work in self._works_of(node):
                    node.outbox.put_nowait(work.id)
        else:
            event = NodePaused if node.state is NodeState.PAUSED else NodeLeaving
            self._node_events.emit(event(text=f"{node.name} is {node.state}", node=node.name))

    def _note_manifest(self, node: Node, manifest: str) -> None:
        """Keep what a node says about its data for the history of models."""
        try:
            problem = self.manifests.note(node.name, manifest)
        except OSError as e:
            text = f"the data manifest of {node.name} cannot be written: {e.strerror}; {remedy(e)}"
            self._node_events.emit(DiskProblem(text=text, node=node.name, errno=e.errno))
            return
        if problem:
            text = f"the data manifest of {node.name} is not kept: {problem}"
            self._node_events.emit(ManifestIgnored(text=text, node=node.name))

    def depart(self, node: Node, attendance: bytes) -> None:
        """A node's Attend stream ended. Its work waits `rejoin_s` for it, unless it announced that it leaves."""
        wait_s = 0.0 if node.state is NodeState.LEAVING else self.run.rounds.rejoin_s
        if node.state is NodeState.REHEARSING:
            return self.roster.end_rehearsal(node)
        if not self.roster.lose(node, attendance):
            return
        if not self.over:
            text = f"{node.name} is gone ({time.strftime('%H:%M:%S')})"
            self._node_events.emit(NodeLost(text=text, node=node.name))
            asyncio.get_running_loop().call_later(wait_s, self._give_up, node, attendance)

    def lose(self, node: Node) -> None:
        """A node is silent: it is lost. If the message reaches it, it attends again."""
        self.depart(node, node.attendance)
        reason = f"{node.name} was silent for {self.run.server.liveness_s:g} s; attend again"
        node.outbox.put_nowait(Refusal(reason, UNAVAILABLE))

    def is_uploading(self, node: Node) -> bool:
        """Whether an upload of the node is in progress."""
        return any(work.slot.call for work in self._works_of(node))

    def expel(self, node: Node, refusal: Refusal) -> None:
        """End a node's attendance with a reason. Its work fails now; the run does not wait for its return."""
        for work in self._works_of(node):
            self._fail(work, NODE_LOST, "NodeExpelled", f"{node.name}: {refusal.reason}")
        if node.is_here:
            self.depart(node, node.attendance)
        node.end_attendance()
        self.calls.end_node(node.name, refusal)

    def _give_up(self, node: Node, attendance: bytes) -> None:
        if node.state is NodeState.LOST and node.attendance == attendance:  # else it came back in the meantime
            for work in self._works_of(node):
                self._fail(work, NODE_LOST, "NodeLost", f"{node.name} was lost and did not come back in time")

    # ---- one run after another -----------------------------------------------------------------------------

    def begin_run(self, run_id: str, run: RunConfig, schema: ReplySchema | None = None) -> None:
        """Go on to the next run. Who attends stays, drops the work of the run before, and declares again.

        [server] stays as it is. `schema`: what clients may declare.

        Raises ConfigError: the run has another [split].
        """
        if run.split != self.run.split:
            raise ConfigError(
                "[split] gives each client its part when it comes: a run that follows cannot change it"
            )
        for work in list(self._works.values()):
            self._fail(work, NODE_LOST, "RunOver", "the server went on to its next run")
        run = run.model_copy(update={"server": self.run.server})
        self.run_id, self.run, self.schema = run_id, run, schema
        for node in self.roster.nodes():
            if not node.is_here:
                continue
            node.begin_run()
            if problem := version_problem(node.attends, run, self.app):
                self.declare(node, pb.Declaration(problem=problem))
            else:
                node.outbox.put_nowait(pb.ServerEvent(welcome=self._welcome(node)))

    # ---- work goes out and comes back ----------------------------------------------------------------------

    def dispatch(self, batch: Batch, blobs: dict[bytes, Buffer]) -> None:
        """Send every work of the batch to its node, now."""
        self.blobs.hold(blobs)
        batch.hold(blobs)
        for work in batch.works:
            self._works[key_of(work.id)] = work
            if self.over:  # the strategy has not noticed yet; no node will answer
                self._fail(work, NODE_LOST, "RunOver", self.over.reason)
            elif work.node.state in (NodeState.READY, NodeState.PAUSED):
                work.node.outbox.put_nowait(work.id)
            elif work.node.state in (NodeState.UNFIT, NodeState.DROPPED, NodeState.QUARANTINED):
                self._fail(work, NODE_LOST, f"Node{work.node.state.title()}", work.node.problem)
            else:
                asyncio.get_running_loop().call_later(
                    self.run.rounds.rejoin_s, self._give_up, work.node, work.node.attendance
                )

    def assignment(self, work_id: pb.AssignmentId) -> Parts | pb.ServerEvent:
        """The assignment to send to the node, with the small blobs that it lacks.

        An empty event (a heartbeat) if the work is over by now.
        """
        work = self._works.get(key_of(work_id))
        if work is None:
            return pb.ServerEvent()
        node, sizes = work.node, work.content.sizes
        along = work.content.along(node.given)
        node.remember_given(sizes.keys())
        node.count_down(sum(sizes[digest] for digest in along))
        return work.event(self.blobs[digest] for digest in along)

    def close(self, batch: Batch, reason: str) -> None:
        """The batch is no longer needed: cancel open work and free its blobs."""
        for work in batch.works:
            if self._works.pop(key_of(work.id), None):
                work.node.outbox.put_nowait(pb.ServerEvent(cancel=pb.Cancel(id=work.id, reason=reason)))
                self.intake.drop(work.slot)
        self.blobs.release(batch.digests)
        batch.clear()

    def at_work(self) -> dict[str, str]:
        """The nodes that owe a reply, with the type of the message that each is working on."""
        return {work.node.name: work.id.message_type for work in self._works.values()}

    def _works_of(self, node: Node) -> list[Work]:
        return [work for work in self._works.values() if work.node is node]

    def _fail(self, work: Work, code: int, kind: str, reason: str) -> None:
        self.intake.drop(work.slot)
        self._settle(work, Reply(work, failure=pb.Failure(code=code, kind=kind, reason=reason)))

    def _settle(self, work: Work, reply: Reply) -> None:
        if self._works.pop(key_of(work.id), None):
            self._committed.append(key_of(work.id))
            work.node.report(None)
            work.batch.take(reply)

    # ---- uploads -------------------------------------------------------------------------------------------

    def find_work(self, node: Node, work_id: pb.AssignmentId) -> Work | pb.Receipt:
        """The open work that an upload belongs to, or the receipt that ends the upload at once."""
        work = self._works.get(key_of(work_id))
        if work is not None and work.node is node:
            return work
        if key_of(work_id) in self._committed and work_id.node_id == node.node_id:
            return pb.Receipt(outcome=pb.Receipt.DUPLICATE, reason="the server already has this reply")
        return pb.Receipt(outcome=pb.Receipt.LATE, reason="the server no longer waits for this reply")

    def has_work(self, work_id: pb.AssignmentId) -> bool:
        """Whether this work is open."""
        return key_of(work_id) in self._works

    def check_header(self, work: Work, header: pb.UploadHeader) -> None:
        """Raises InvalidError if this cannot be a reply to that work."""
        message_limits.check_header(
            header, self.intake.budget.total_bytes if self.schema is None else message_limits.COUNT
        )
        if self.schema and not header.HasField("failure"):
            self.schema.check(work.id.message_type, header.manifest)

    def commit(self, work: Work, manifest: pb.Manifest) -> None:
        """The upload of `work` is complete and intact: deliver it."""
        slot = self.intake.hand_over(work.slot)
        self._settle(work, Reply(work, manifest=manifest, slot=slot))

    def note_full_disk(self, work: Work, error: OSError) -> None:
        """An upload could not be stored; the client tries again until the deadline."""
        self.intake.drop(work.slot)
        text = f"cannot store the reply of {work.node.name}: {error.strerror}; {remedy(error)}"
        self._node_events.emit(DiskProblem(text=text, node=work.node.name, errno=error.errno))

    def note_put_back(self, work: Work, problem: str) -> None:
        """An upload lost its place to one that waited; the client resumes it later."""
        text = f"the upload of {work.node.name} must wait for its next turn: {problem}"
        self._node_events.emit(UploadPutBack(text=text, node=work.node.name, reason=problem))

    def report_failure(self, work: Work, failure: pb.Failure) -> None:
        """The client reports that its work failed."""
        text = f"{work.node.name} failed: {failure.kind}: {failure.reason}"
        self._node_events.emit(WorkFailed(text=text, node=work.node.name, failure=failure.kind))
        code = failure.code if failure.kind == APP_ERROR else failure.code or APP_FAILED
        self._fail(work, code, failure.kind, failure.reason)

    def reject(self, work: Work, error: ProtocolError) -> pb.Receipt:
        """The reply is invalid: its work fails, the round goes on."""
        self._fail(work, REPLY_REJECTED, "Rejected", str(error))
        self.door.reject_message(work.node, "Upload", error)
        return pb.Receipt(outcome=pb.Receipt.REJECTED, reason=str(error))

    def drop_damaged(self, work: Work) -> pb.Receipt:
        """Discard an upload that arrived damaged. The client sends it again, up to a limit."""
        self.intake.drop(work.slot)
        if work.count_damage() >= _DAMAGED_UPLOADS:
            return self.reject(work, InvalidError("digest", f"the reply arrived damaged {work.damaged} times"))
        return pb.Receipt(outcome=pb.Receipt.DAMAGED, reason="checksum or length differ; send it again")

    # ---- the end -------------------------------------------------------------------------------------------

    def restore(self, parts: dict[str, int], bytes_up: int, bytes_down: int) -> None:
        """After a restart, restore which nodes took part and how many bytes were transferred before."""
        self.roster.restore(parts)
        self._earlier_bytes = (bytes_up, bytes_down)

    def expect(self, schema: ReplySchema) -> None:
        """Set the form of replies from now on. May be called from any thread: it is one assignment."""
        self.schema = schema

    def traffic(self) -> tuple[int, int]:
        """(bytes up, bytes down) of the whole run, counted at the link."""
        nodes = self.roster.nodes()
        up, down = self._earlier_bytes
        return up + sum(n.bytes_up for n in nodes), down + sum(n.bytes_down for n in nodes)

    def finish(self, reason: str, *, failed: bool) -> None:
        """Tell all nodes that the run is over."""
        self.over = pb.RunOver(reason=reason, failed=failed)
        for work in list(self._works.values()):  # so that the strategy does not wait for it
            self._fail(work, NODE_LOST, "RunOver", reason)
        for node in self.roster.nodes():
            node.outbox.put_nowait(pb.ServerEvent(run_over=self.over))


def _holds(declaration: pb.Declaration) -> str:
    """Examples and device; a foreign app declares no examples."""
    examples = f"{declaration.examples} examples on " if declaration.examples else ""
    return f"{examples}{declaration.device}"
