"""Requests of gates and people's verdicts on them. Pipelines ask, `fednc approve` and the console answer.

Every request and every verdict is an event in a chained file. A verdict is about one digest, the one that the
person saw, and binds the whole request by its hash. Knows nothing about pipelines or models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fednc.common.errors import ConfigError, RefusedError
from fednc.common.peer_text import one_line
from fednc.common.security import signatures
from fednc.common.security.credentials import Role
from fednc.common.security.signatures import Signature, Signer, Trust
from fednc.ops.approvals.chained_file import ChainedEvent, ChainedFile, ChangedRecordError

APPROVED, REJECTED = "approved", "rejected"
CONSOLE = "console"  # the only way in which a server signs for a person
_PURPOSE = "verdict"
_FORMAT = 1
_MOST_TEXT, _MOST_FACTS = 1000, 64 << 10  # characters of a name or reason; bytes of facts


@dataclass(frozen=True)
class Request:
    """What a gate asks.

    Attributes:
        digest: of what is to be approved: 16 to 128 hexadecimal digits.
        subject: the gate, and what passes through it. A newer request with the same subject replaces an older one.
        facts: JSON values that the person is shown.
        signed: only a signed verdict counts.
    """

    digest: str
    subject: str
    facts: Mapping[str, Any]
    signed: bool = False


@dataclass(frozen=True)
class PendingRequest:
    """A request without a verdict. `sha256` is of its event, and through the chain of all before it."""

    request: Request
    at: str  # ISO 8601, UTC
    sha256: str
    not_before: float = 0.0  # Unix time of the latest event up to this one: no answer is older


@dataclass(frozen=True)
class Verdict:
    """A person's answer.

    Attributes:
        who: the operator's name; for the console the login.
        how: `command line`, `console` or `script`.
        at: ISO 8601, UTC.
        signature: None: nobody signed it.
        subject, request: of the request that it answers; `request` is the sha256 of its event.
    """

    digest: str
    verdict: str
    who: str
    how: str
    reason: str
    at: str
    signature: Signature | None
    subject: str
    request: str

    @property
    def approved(self) -> bool:
        """Whether it says yes."""
        return self.verdict == APPROVED

    @property
    def signed(self) -> str:
        """Who signed, for people: `operator 'mara'`, `server for 'mara'`, `unsigned`."""
        if self.signature is None:
            return "unsigned"
        try:
            holder = self.signature.holder
        except RefusedError:
            return "a certificate that cannot be read"
        return str(holder) if holder else f"server for {self.who!r}"

    @property
    def statement(self) -> dict[str, str]:
        """What is signed. It names the request, so a signature is worth nothing at another gate."""
        return {key: str(value) for key, value in asdict(self).items() if key != "signature"}

    def to_json(self) -> dict[str, Any]:
        """JSON values, for the lineage of a version and for programs."""
        return {**asdict(self), "signed": self.signed}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """A verdict from `to_json`. Raises ValueError."""
        texts = ("digest", "verdict", "who", "how", "reason", "at", "subject", "request")
        found: dict[str, Any] = {key: values.get(key) for key in texts}
        if not all(isinstance(value, str) for value in found.values()):
            raise ValueError("it lacks a part, or a part is not text")
        given = values.get("signature")
        signature = None if given is None else Signature(**given)
        if signature is not None and not all(isinstance(value, str) for value in asdict(signature).values()):
            raise ValueError("a part of its signature is not text")
        return cls(**found, signature=signature)

    def check(self, trust: Trust) -> None:
        """Check the signature. Raises RefusedError: there is none, or it does not count; ConfigError."""
        if self.signature is None:
            raise RefusedError(f"the verdict of {self.who!r} on {self.digest[:16]} is not signed")
        self._check_signer(self.signature)
        trust.check(self.signature, _PURPOSE, self.statement, _seconds(self.at))

    def check_alone(self) -> None:
        """Check the signature, if there is one, by its own certificate, whoever issued that. Raises
        RefusedError.
        """
        if self.signature is not None:
            self._check_signer(self.signature)
            signatures.verify(self.signature, _PURPOSE, self.statement)

    def _check_signer(self, signature: Signature) -> None:
        """Operators sign for themselves. A server signs for the login at its console, and for nothing else."""
        if self.how == CONSOLE:
            fits = signatures.is_of_server(signature)
        else:
            holder = signature.holder
            fits = holder is not None and (holder.role, holder.name) == (Role.OPERATOR, self.who)
        if not fits:
            raise RefusedError(
                f"the verdict of {self.who!r} ({self.how}) is signed with a key that is not theirs: "
                f"{signature.holder or 'a server'}"
            )


class ApprovalBox:
    """The requests and verdicts in a folder.

    Every method raises ChangedRecordError if the record was changed or damaged.
    """

    def __init__(self, folder: Path, trust: Trust | None = None) -> None:
        """Name the folder; it is made with the first request.

        Args:
            trust: whose signatures count. With it, every signature is checked, when it is given and when it is
                read.
        """
        self._file, self._trust = ChainedFile(folder), trust

    @property
    def folder(self) -> Path:
        """Where the events are."""
        return self._file.folder

    def request(self, request: Request) -> None:
        """Ask for a verdict. Asking the same again changes nothing, whether it has been answered or not.

        A gate that wants a signature by now asks anew if the verdict has none, so that the person hears about it.

        Raises ConfigError: the request cannot be used.
        """
        _check_request(request)
        with self._file.appending() as file:
            newest = _gates(file.events).get(request.subject)
            if newest is None or newest.is_outdated_by(request):
                file.add({"kind": "request", "format": _FORMAT, "at": _time(signatures.now()), **asdict(request)})

    def pending(self) -> list[PendingRequest]:
        """What waits for a verdict, the oldest first."""
        return [gate.pending for gate in _gates(self._file.read()).values() if gate.verdict is None]

    def verdict(self, digest: str, subject: str = "") -> Verdict | None:
        """The verdict on a digest; None if there is none yet, or if its gate has asked about another one since.

        Args:
            subject: the gate. Without it, the digest must wait at one gate only.

        Raises:
            RefusedError: its signature does not count, or there is none where one is needed.
            ConfigError: the digest waits at several gates.
        """
        fitting = _at_gates(_gates(self._file.read()), digest, subject)
        if len(fitting) > 1:
            raise ConfigError(
                f"{digest[:16]} was asked about by several gates: {_named(fitting)}; name the subject"
            )
        found = fitting[0].verdict if fitting else None
        if found is not None:
            self._check(fitting[0].pending, found)
        return found

    def verdicts(self) -> list[Verdict]:
        """Every verdict ever given, the oldest first. Nothing about them is checked; see `problems`."""
        return [_verdict_of(each) for each in self._file.read() if each.event.get("kind") == "verdict"]

    def problems(self, verdicts: Sequence[Verdict]) -> list[str]:
        """Why each of these verdicts does not count; empty text if it does, or if nobody signed."""
        asked = {each.sha256: each for each in _requests(self._file.read())}
        return [self._problem_with(given, asked.get(given.request)) for given in verdicts]

    def _problem_with(self, given: Verdict, asked: PendingRequest | None) -> str:
        if asked is None:
            return "it answers no request of this record"
        try:
            self._check_signature(given)
            self._check_time(asked, given)
        except RefusedError as e:
            return str(e)
        return ""

    def decide(
        self,
        digest: str,
        verdict: str,
        who: str,
        reason: str = "",
        signer: Signer | None = None,
        *,
        how: str = "command line",
        subject: str = "",
        change: bool = False,
    ) -> Verdict:
        """Answer the gate that waits for this digest.

        Args:
            digest: the whole digest that the person saw.
            verdict: `approved` or `rejected`.
            signer: whose key signs it; None leaves it unsigned.
            how: `console` if a server signs for a login.
            subject: the gate, if several wait for this digest.
            change: decide again what has a verdict already.

        Raises:
            RefusedError: no gate waits for this digest, it has a verdict, or the signature would not count.
            ConfigError: a name or reason cannot be used.
        """
        _check_answer(verdict, who, reason)
        with self._file.appending() as file:
            gate = _the_one(_gates(file.events), digest, subject, change=change)
            asked = gate.pending
            given = Verdict(
                digest,
                verdict,
                who,
                how,
                reason,
                _time(max(signatures.now(), asked.not_before)),  # a clock may be behind that of the gate
                None,
                asked.request.subject,
                asked.sha256,
            )
            if signer is not None:
                given = replace(given, signature=signer.sign(_PURPOSE, given.statement))
            self._check(asked, given)
            file.add({"kind": "verdict", "format": _FORMAT, **asdict(given)})
        return given

    def _check(self, asked: PendingRequest, given: Verdict) -> None:
        """Raises RefusedError."""
        request = asked.request
        if request.signed and given.signature is None:
            raise RefusedError(
                f"{request.subject}: this gate takes signed verdicts only. On the command line give "
                "--certs DIR, the folder that `fednc certs node DIR NAME --operator` made"
            )
        self._check_signature(given)
        self._check_time(asked, given)

    def _check_time(self, asked: PendingRequest, given: Verdict) -> None:
        """The holder of an expired key can name any time, but none before the request that the verdict answers.

        Raises RefusedError.
        """
        if _seconds(given.at) < asked.not_before:
            raise RefusedError(
                f"the verdict of {given.who!r} says that it was given at {given.at}, before the gate asked at "
                f"{_time(asked.not_before)}"
            )

    def _check_signature(self, given: Verdict) -> None:
        """Raises RefusedError."""
        if self._trust is not None and given.signature is not None:
            given.check(self._trust)
        else:
            given.check_alone()


@dataclass(frozen=True)
class _GateState:
    """The newest request of a gate, and the newest verdict on it."""

    pending: PendingRequest
    verdict: Verdict | None = None

    def is_outdated_by(self, request: Request) -> bool:
        """Whether a newer request of the gate asks for something else."""
        known = self.pending.request
        if known.digest != request.digest:
            return True
        is_signed = self.verdict is not None and self.verdict.signature is not None
        return known.signed != request.signed and not is_signed and (request.signed or self.verdict is None)


def _gates(events: Sequence[ChainedEvent]) -> dict[str, _GateState]:
    """The state of each gate, by subject. Raises ChangedRecordError."""
    gates: dict[str, _GateState] = {}
    requests = {each.sha256: each for each in _requests(events)}
    for each in events:
        if each.event.get("format") != _FORMAT:
            raise ChangedRecordError(f"event {each.n} has a format that this version of fednc does not know")
        if each.event.get("kind") == "request":
            asked = requests[each.sha256]
            gates.pop(asked.request.subject, None)  # so that the order is that of the newest requests
            gates[asked.request.subject] = _GateState(asked)
        else:
            given = _verdict_of(each)
            gate = gates.get(given.subject)
            if gate is None or (gate.pending.sha256, gate.pending.request.digest) != (given.request, given.digest):
                raise ChangedRecordError(f"event {each.n}: a verdict on something that no gate was waiting for")
            gates[given.subject] = _GateState(gate.pending, given)
    return gates


def _requests(events: Sequence[ChainedEvent]) -> Iterator[PendingRequest]:
    """All requests. One that says it is older than an event before it counts as being of that event's time.

    Raises ChangedRecordError.
    """
    latest = 0.0
    for each in events:
        with suppress(RefusedError):  # a verdict that names no time is refused when somebody asks for it
            latest = max(latest, _seconds(str(each.event.get("at"))))
        if each.event.get("kind") == "request":
            yield _request_of(each, latest)


def _request_of(each: ChainedEvent, latest: float) -> PendingRequest:
    try:
        parts = {key: each.event[key] for key in ("digest", "subject", "facts", "signed")}
        return PendingRequest(Request(**parts), str(each.event["at"]), each.sha256, latest)
    except KeyError as e:
        raise ChangedRecordError(f"event {each.n}: a request without {e}") from e


def _verdict_of(each: ChainedEvent) -> Verdict:
    try:
        return Verdict.from_json(each.event)
    except (ValueError, TypeError) as e:
        raise ChangedRecordError(f"event {each.n} is not a verdict: {e}") from e


def _at_gates(gates: Mapping[str, _GateState], digest: str, subject: str) -> list[_GateState]:
    return [
        gate for name, gate in gates.items() if gate.pending.request.digest == digest and name == (subject or name)
    ]


def _the_one(gates: Mapping[str, _GateState], digest: str, subject: str, *, change: bool) -> _GateState:
    """The gate that a verdict on `digest` answers. Raises RefusedError."""
    fitting = _at_gates(gates, digest, subject)
    open_ = [gate for gate in fitting if gate.verdict is None] or (fitting if change else [])
    if len(open_) == 1:
        return open_[0]
    if open_:
        raise RefusedError(f"{digest[:16]} waits at several gates: {_named(open_)}; name the subject")
    if fitting and (given := fitting[-1].verdict):
        raise RefusedError(
            f"{digest[:16]} was {given.verdict} by {given.who!r} at {given.at}; --change decides it again"
        )
    waiting = [gate for gate in gates.values() if gate.verdict is None]
    raise RefusedError(
        f"no gate waits for {digest[:16] or 'an empty digest'}: {_named(waiting) or 'nothing waits'}. "
        "A verdict is about what was seen; look at what waits now (`fednc gates`)"
    )


def _named(gates: Sequence[_GateState]) -> str:
    return "; ".join(f"{gate.pending.request.subject} waits for {gate.pending.request.digest}" for gate in gates)


def _check_request(request: Request) -> None:
    if not 16 <= len(request.digest) <= 128 or not set(request.digest) <= set("0123456789abcdef"):
        raise ConfigError(f"digest {request.digest!r:.80}: give 16 to 128 lower-case hexadecimal digits")
    _check_text("subject", request.subject)
    try:
        size = len(json.dumps(dict(request.facts), allow_nan=False))
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{request.subject}: facts must be JSON values, with finite numbers: {e}") from e
    if size > _MOST_FACTS:
        raise ConfigError(f"{request.subject}: facts of {size} bytes; at most {_MOST_FACTS} can be shown")


def _check_answer(verdict: str, who: str, reason: str) -> None:
    if verdict not in (APPROVED, REJECTED):
        raise ConfigError(f"verdict {verdict!r}: give {APPROVED!r} or {REJECTED!r}")
    _check_text("name", who)
    if verdict == REJECTED or reason:
        _check_text("reason", reason)


def _check_text(what: str, text: str) -> None:
    """Raises ConfigError unless a terminal shows the text as it is."""
    if not text.strip() or len(text) > _MOST_TEXT or one_line(text) != text:
        raise ConfigError(f"{what} {text!r:.80}: give one line of 1 to {_MOST_TEXT} printable characters")


def _seconds(at: str) -> float:
    """Seconds since 1970 of an ISO 8601 time with its zone. Raises RefusedError: it is none."""
    try:
        found = datetime.fromisoformat(at)
    except ValueError as e:
        raise RefusedError(f"{at!r:.40} is not a time") from e
    if found.tzinfo is None:
        raise RefusedError(f"{at!r:.40} is a time without a zone")
    return found.timestamp()


def _time(seconds: float) -> str:
    assert math.isfinite(seconds)
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
