"""A host that every instruction and every reply passes: it asks the owner's policy and writes the audit log.

Wraps the host that does the work, as `Reserve` does. Refuses before the work if run and instruction are reason
enough, and after it by the content of the reply. With an audit log only, it refuses nothing.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import Message, RecordDict

from fednc.client.link.link import Host
from fednc.client.link.work_hooks import CURRENT, LocalProgress, WorkCancelledError
from fednc.client.policy import objections
from fednc.client.policy.audit import Audit, describe
from fednc.client.policy.ledger import data_fingerprint
from fednc.client.policy.objections import GRADIENTS, MEASURES, Objection
from fednc.client.policy.owner import Owner, judge_run, run_of, to_changed_run
from fednc.client.policy.rules import REFUSED, SENTENCES, OwnerRefusalError
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError, FedncError
from fednc.common.peer_text import SHORT_TEXT, plain
from fednc.common.tasks.data_manifest import without_data
from fednc.common.wire import records
from fednc.common.wire.failure_reasons import CodedError
from fednc.common.wire.messages import HELLO, RUN, TRAIN, Instruction
from fednc.protos import federation_pb2 as pb

log = logging.getLogger("fednc.client")

_ROUND_DIGITS = 10
_KEPT_ANSWERS, _KEPT_BYTES = 32, 8 << 20  # of answers that may be repeated without being counted


class BarredError(CodedError, ConfigError):
    """The policy refuses the whole run."""

    def __init__(self, sentence: str) -> None:
        super().__init__(f"{REFUSED}: {sentence}")
        self.code, self.sentence = REFUSED, sentence


@dataclass
class _AdmittedRun:
    """A run that this client takes part in."""

    run: RunConfig
    held: pb.Declaration
    having: Sequence[int]  # examples that have each class
    data: str  # fingerprint
    trained: dict[int, bytes] = field(default_factory=dict)  # round -> fingerprint of what it trained from
    answers: OrderedDict[bytes, RecordDict] = field(default_factory=OrderedDict)


class Guard:
    """A host that refuses what its owner does not allow, and logs what leaves."""

    def __init__(self, host: Host, audit: Audit | None, owner: Owner | None = None) -> None:
        self._host, self._audit, self._owner = host, audit, owner
        self._admitted: _AdmittedRun | None = None
        self._run_id = self._digest = ""
        self._lock = threading.Lock()

    # ---- a run -------------------------------------------------------------------------------------------------

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        """See Host. Raises BarredError too."""
        self._run_id, self._digest = welcome.run_id[:SHORT_TEXT], _digest_of(welcome)
        try:
            held = self._admit(self._owner, welcome) if self._owner else self._host.prepare(welcome)
            if self._audit:
                data = held.SerializeToString(deterministic=True)
                digest = hashlib.sha256(data).hexdigest()
                self._audit.begin_run(run_id=self._run_id, digest=self._digest, bytes=len(data), sha256=digest)
        except OSError as e:
            self._bar([Objection("records", str(e))])
            raise
        except BarredError:
            raise  # already in the log
        except FedncError as e:
            self._note("failed", "declaration", 0, error=type(e).__name__)
            raise
        return held

    def _admit(self, owner: Owner, welcome: pb.Welcome) -> pb.Declaration:
        """Prepare for a run if the policy allows it. Raises BarredError."""
        run = run_of(welcome)
        self._bar(judge_run(owner, run, welcome))
        held = self._host.prepare(welcome)
        if not owner.policy.allow.manifest:
            held.manifest = without_data(held.manifest)
        try:
            self._bar(objections.to_data(owner.policy, run, held))
            data = data_fingerprint(owner.data)
            self._admit_to_data(owner, data)
        except BaseException:
            self._host.leave()
            raise
        self._admitted = _AdmittedRun(run, held, self._host.examples_having(), data)
        return held

    def _admit_to_data(self, owner: Owner, data: str) -> None:
        """Check the run against earlier uses of the same data, and record it. Raises BarredError, ConfigError."""
        share = owner.ledger.pin_hold_out(data, owner.val_share)
        if share != owner.val_share:
            raise ConfigError(
                f"--val-share {owner.val_share:g}: {share:g} of this data was held out when it was first used; "
                f"the difference would reveal single examples. Start with --val-share {share:g}."
            )
        code = owner.ledger.admit_run(
            data, self._digest, self._run_id, owner.policy.quota, pin=owner.policy.runs.pin_first
        )
        self._bar([Objection(code, f"digest {self._digest}")] if code else [])

    def _bar(self, found: Iterable[Objection]) -> None:
        """Raises BarredError if anything was found; the server gets the codes, the owner the details."""
        against = list(found)
        if not against:
            return
        for code, detail in against:
            log.error("policy: %s: %s (%s)", code, SENTENCES[code], detail)
            self._note_refusal("run", 0, code, detail)
        codes = dict.fromkeys(code for code, _ in against)
        raise BarredError("; ".join(f"{code}: {SENTENCES[code]}" for code in codes))

    def examples_having(self) -> Sequence[int]:
        """See Host."""
        return self._host.examples_having()

    def leave(self) -> None:
        """See Host."""
        self._admitted = None
        self._host.leave()

    # ---- an instruction ----------------------------------------------------------------------------------------

    def before_download(self, work_id: pb.AssignmentId, size: int) -> None:
        """Called by the link before it downloads an instruction's content. Raises OwnerRefusalError."""
        most = self._owner.policy.ceiling.download_mib if self._owner else 0
        if most and size > most * (1 << 20):
            detail = f"{size / (1 << 20):.1f} MiB; ceiling.download_mib = {most:g}"
            self._note_refusal(work_id.message_type, 0, "download", detail)
            raise OwnerRefusalError("download", detail)

    def work(self, message: Message) -> Message:
        """See Host. Raises OwnerRefusalError."""
        with self._lock:
            return self._work(message)

    def _work(self, message: Message) -> Message:
        kind, group = message.metadata.message_type, message.metadata.group_id
        server_round = int(group) if group.isdecimal() and len(group) < _ROUND_DIGITS else 0
        progress = _CountedProgress(
            CURRENT.get().report, shows_loss=not self._owner or self._owner.policy.allow.progress_loss
        )
        try:
            if self._owner:
                order = Instruction.of(message)
                server_round = order.server_round
                reply = self._answer(self._owner, message, order, progress)
            else:
                reply = self._ask_host(message, progress)
        except OwnerRefusalError as e:
            log.warning(
                "policy: refused %s of round %d: %s (%s)", plain(kind, SHORT_TEXT), server_round, e, e.detail
            )
            self._note_refusal(kind, server_round, e.reason_code, e.detail)
            raise
        except WorkCancelledError:
            raise  # nothing leaves
        except Exception as e:
            self._note("failed", kind, server_round, error=type(e).__name__)
            raise
        facts = {"error": True} if reply.has_error() else describe(reply.content)
        self._note("sent", kind, server_round, progress_reports=progress.sent, **facts)
        return reply

    def _answer(self, owner: Owner, message: Message, order: Instruction, progress: _CountedProgress) -> Message:
        here = self._admitted
        if here is None:
            raise OwnerRefusalError("run-changed", "this client takes part in no run")
        kind = message.metadata.message_type
        _refuse_first(to_changed_run(here.run, order))
        _refuse_first(objections.to_instruction(owner.policy, here.run, order, kind))
        asked = _fingerprint(message)
        if kind == TRAIN and here.trained.setdefault(order.server_round, asked) != asked:
            raise OwnerRefusalError("again", f"round {order.server_round}")
        timed = kind in MEASURES or bool(here.run.sessions)  # the answer depends on the round too
        key = hashlib.sha256(f"{kind}/{order.server_round if timed else ''}/".encode() + asked).digest()
        if (known := here.answers.get(key)) is not None:
            return Message(known, reply_to=message)
        if kind != HELLO:
            self._count(owner, here)
        reply = self._ask_host(message, progress)
        if not reply.has_error():
            _refuse_first(objections.to_reply(owner.policy, kind, reply.content, here.held, here.having))
            if kind not in (TRAIN, *GRADIENTS):
                _remember(here.answers, key, reply.content)
        return reply

    def _count(self, owner: Owner, here: _AdmittedRun) -> None:
        """Count an answer before the work, so that killing this process does not undo it."""
        try:
            code = owner.ledger.count_query(here.data, owner.policy.quota)
        except (OSError, ConfigError) as e:
            raise OwnerRefusalError("records", str(e)) from e
        if code:
            raise OwnerRefusalError(code, "see [quota]")

    def _ask_host(self, message: Message, progress: _CountedProgress) -> Message:
        token = CURRENT.set(replace(CURRENT.get(), report=progress))
        try:
            return self._host.work(message)
        finally:
            CURRENT.reset(token)

    # ---- the audit log ----------------------------------------------------------------------------------------

    def _note(self, outcome: str, kind: str, server_round: int, **facts: Any) -> None:
        """Write to the audit log. Raises OwnerRefusalError if that fails, and then nothing leaves."""
        if self._audit is None:
            return
        try:
            self._audit.write(
                outcome, run_id=self._run_id, digest=self._digest, round=server_round, kind=kind[:80], **facts
            )
        except OSError as e:
            raise OwnerRefusalError("records", str(e)) from e

    def _note_refusal(self, kind: str, server_round: int, code: str, detail: str) -> None:
        if self._audit is None:
            return
        try:
            self._audit.refuse(
                run_id=self._run_id,
                digest=self._digest,
                round=server_round,
                kind=kind[:80],
                code=code,
                detail=detail,
            )
        except OSError as e:
            log.error("the audit log could not be written: %s", e.strerror)  # the refusal stands


class _CountedProgress:
    """Sends progress reports and counts them; without the loss of single batches unless that is allowed."""

    def __init__(self, report: Callable[[LocalProgress], None], *, shows_loss: bool) -> None:
        self._report, self._shows_loss, self.sent = report, shows_loss, 0

    def __call__(self, step: LocalProgress) -> None:
        self.sent += 1
        self._report(step if self._shows_loss else replace(step, loss=0.0))


def _digest_of(welcome: pb.Welcome) -> str:
    """The run file's digest; empty if this version cannot read it, as with a foreign app's."""
    try:
        return run_of(welcome).digest
    except ConfigError:
        return ""


def _refuse_first(found: Iterable[Objection]) -> None:
    for code, detail in found:
        raise OwnerRefusalError(code, detail)


def _fingerprint(message: Message) -> bytes:
    """sha256 of an instruction's content without its run file."""
    content = RecordDict({name: record for name, record in message.content.items() if name != RUN})
    manifest = records.to_manifest(content, with_digests=False)
    found = hashlib.sha256(manifest.SerializeToString(deterministic=True))
    for array in records.arrays_of(content):
        found.update(array.data)
    return found.digest()


def _remember(answers: OrderedDict[bytes, RecordDict], key: bytes, content: RecordDict) -> None:
    if sum(len(array.data) for array in records.arrays_of(content)) <= _KEPT_BYTES:
        answers[key] = content
        while len(answers) > _KEPT_ANSWERS:
            answers.popitem(last=False)
