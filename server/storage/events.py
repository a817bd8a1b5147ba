"""All kinds of events that a run can record: one class each, with its kind and its fields.

The server creates them and passes them to `event_log.py`; the live view, Prometheus and the container checks match
them by class. Users parse the kinds and field names in `events.jsonl`: never rename one, and give a new field a
default, so that older files can still be read.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from fednc.common.errors import DataError
from fednc.server.storage.history import RoundRecord

KINDS: dict[str, type[Event]] = {}  # kind: its class; filled as the classes below are defined
_OPTIONAL = "optional"


def optional() -> Any:
    """A field that is left out of the file if it is None."""
    return dataclasses.field(default=None, metadata={_OPTIONAL: True})


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event. `text` is for people, the other fields are for machines.

    A subclass with a `kind` can be recorded; one without is a base class. `level` is the level of the log line.
    """

    kind: ClassVar[str] = ""
    level: ClassVar[int] = logging.INFO
    text: str

    def __init_subclass__(cls, *, kind: str = "", level: int = logging.INFO) -> None:
        cls.kind, cls.level = kind, level
        if kind:
            assert kind not in KINDS, f"two events of kind {kind!r}"
            KINDS[kind] = cls

    def fields(self) -> dict[str, Any]:
        """Text and fields as they are written to the file."""
        optional_names = {field.name for field in dataclasses.fields(self) if _OPTIONAL in field.metadata}
        return {k: v for k, v in vars(self).items() if not (v is None and k in optional_names)}

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild an event from `fields`. Unknown fields are ignored. Raises ValidationError."""
        return TypeAdapter(cls).validate_python(values)


def event_of(values: Mapping[str, Any]) -> Event | None:
    """The event in one line of `events.jsonl`; None if the kind is unknown (a newer version wrote it).

    Raises:
        DataError: a field is missing or of the wrong type.
    """
    kind = values.get("kind")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    try:
        return cls.from_fields(values) if cls else None
    except ValidationError as e:
        raise DataError(f"an event of kind {kind!r} is damaged: {e}") from e


# ---- the server ---------------------------------------------------------------------------------------------


class CredentialsProblem(Event, kind="credentials", level=logging.ERROR):
    """A credential of the server cannot be read, or expires soon."""


class InsecureLink(Event, kind="insecure", level=logging.WARNING):
    """The server listens without any credentials."""


@dataclass(frozen=True, kw_only=True)
class ServerListening(Event, kind="listening"):
    """The server accepts connections."""

    port: int
    auth: str
    metrics_port: int | None


@dataclass(frozen=True, kw_only=True)
class CallRefused(Event, kind="refused", level=logging.WARNING):
    """A call was refused before it reached the federation."""

    peer: str
    reason: str
    status: str
    method: str
    unsaid: int


@dataclass(frozen=True, kw_only=True)
class DiskProblem(Event, kind="disk", level=logging.ERROR):
    """Something could not be written."""

    node: str | None = optional()
    errno: int | None = optional()
    unsaid: int | None = optional()


# ---- the run ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event, kind="start"):
    """The run starts."""

    method: str
    frame: str
    config: str
    metric: Mapping[str, Any] | None = optional()  # the metric that the run is judged by


@dataclass(frozen=True, kw_only=True)
class RunFileChanged(Event, kind="changed"):
    """The run continues with a changed run file."""

    round: int
    changed: dict[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class RunResumed(Event, kind="resume"):
    """The run continues from a checkpoint."""

    round: int


@dataclass(frozen=True, kw_only=True)
class WeightsLoaded(Event, kind="weights"):
    """The model starts from a file of weights."""

    sha256: str


class DataNote(Event, kind="data"):
    """A remark on the server's own test data."""


@dataclass(frozen=True, kw_only=True)
class WaitingForClients(Event, kind="waiting"):
    """Too few clients are ready to begin."""

    session: int | None = optional()


@dataclass(frozen=True, kw_only=True)
class ClassesMissing(Event, kind="missing-classes", level=logging.WARNING):
    """No client has an example of these classes."""

    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DataSumsAdded(Event, kind="data-sums"):
    """Before round 1: the clients' sums of their data are in the model."""

    answered: int  # clients whose sums were added
    withheld: int  # clients that sent none: too few examples, or not allowed by their owner


@dataclass(frozen=True, kw_only=True)
class DataSumsMissing(Event, kind="no-data-sums", level=logging.WARNING):
    """Before round 1: the task asked for sums of the data, and all clients withheld theirs."""

    answered: int
    withheld: int


@dataclass(frozen=True, kw_only=True)
class ModelInitialised(Event, kind="init"):
    """The outcome of `[init]`."""

    initialiser: str
    used: bool
    before: dict[str, Any]
    learnt: dict[str, Any]
    after: dict[str, Any]
    steps: dict[str, int]
    scales: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ProbeStarted(Event, kind="probe-begins"):
    """Before round 1, clients are asked to try candidates."""

    candidates: int
    steps: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class ProbeDecided(Event, kind="probe"):
    """The probe picked a candidate; `config` is the digest of the run file that names all of them."""

    answered: int
    withheld: int
    family: str
    value: float
    config: str
    verdict: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ProbeMissing(Event, kind="no-probe", level=logging.WARNING):
    """No client could say anything about the candidates: the run goes on with `[task]` as it is."""

    answered: int
    withheld: int


@dataclass(frozen=True, kw_only=True)
class ProbeWaiting(Event, kind="probe-waits"):
    """An operator is to confirm what the probe picked."""

    family: str
    value: float


@dataclass(frozen=True, kw_only=True)
class RecordOfRound(Event):
    """An event that has all fields of a round's record besides its own."""

    record: RoundRecord

    def fields(self) -> dict[str, Any]:
        """See Event; the record's fields are written next to the others."""
        values = super().fields()
        record: RoundRecord = values.pop("record")
        return {"text": values.pop("text"), **vars(record), **values}

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Self:
        """See Event."""
        record = TypeAdapter(RoundRecord).validate_python(values)
        return TypeAdapter(cls).validate_python({**values, "record": record})


@dataclass(frozen=True, kw_only=True)
class RoundCompleted(RecordOfRound, kind="round"):
    """A round is over and saved."""

    fold_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrackerFailed(Event, kind="tracker", level=logging.WARNING):
    """A tracker failed or lags too far behind, and is given up."""

    tracker: str


class LastRoundEvaluated(RecordOfRound, kind="evaluated"):
    """An operator stopped the run, so its last round got an extra evaluation."""


@dataclass(frozen=True, kw_only=True)
class ModelCalibrated(Event, kind="calibrated"):
    """After the last round: a temperature was fitted for the read-out."""

    temperature: float
    clients: int
    examples: int


class ConfidenceMeasured(Event, kind="confidence"):
    """After the last round: how far confidences are from accuracies on the server's test data."""


class CalibrationMissing(Event, kind="not-calibrated", level=logging.WARNING):
    """After the last round: no temperature could be fitted."""


@dataclass(frozen=True, kw_only=True)
class PersonalModels(Event, kind="personal"):
    """After the last round: clients adapted the final model to their own data."""

    answered: int
    withheld: int  # clients that hold no examples out


@dataclass(frozen=True, kw_only=True)
class StoppedEarly(Event, kind="early-stop"):
    """`rounds.stop_after` ended the run after this round."""

    round: int
    best: int


@dataclass(frozen=True, kw_only=True)
class BestKept(Event, kind="best"):
    """`rounds.keep = "best"`: the run ends with the model of this round."""

    round: int


class JudgedByTestData(Event, kind="judged-by-test", level=logging.WARNING):
    """No client holds examples out, so the server's test data decides when to stop or which round is best."""


class BestLost(Event, kind="best-lost", level=logging.WARNING):
    """The model of the best round cannot be restored; the run ends with that of its last round."""


@dataclass(frozen=True, kw_only=True)
class SessionWaiting(Event, kind="session-waits"):
    """A session waits for an operator."""

    session: int


@dataclass(frozen=True, kw_only=True)
class SessionOpened(Event, kind="session"):
    """A session begins."""

    session: int
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ClassesWithoutMemory(Event, kind="no-memory", level=logging.WARNING):
    """No client sent a sum of these classes."""

    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class MemoryIsOld(Event, kind="old-memory", level=logging.WARNING):
    """Clients outside this round have these classes and none of it has, so their memory is of an earlier model."""

    round: int
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OperatorCommand(Event, kind="control"):
    """An operator's command was carried out."""

    command: str
    operator: str
    classes: tuple[str, ...] | None = optional()


@dataclass(frozen=True, kw_only=True)
class RunStopped(Event, kind="stop"):
    """An operator stopped the run before this round."""

    round: int


@dataclass(frozen=True, kw_only=True)
class LastGoodKept(Event, kind="kept"):
    """The run ended early; the files of its last good round were written."""

    round: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class RunDone(Event, kind="done"):
    """The run is over and its files are written. The last event of every run that ends well."""

    folder: str
    model: str | None = optional()  # file of a foreign app's model


@dataclass(frozen=True, kw_only=True)
class AppStarted(Event, kind="app"):
    """A foreign Flower app starts."""

    clients: int


# ---- one node -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NodeEvent(Event):
    """An event caused by one node."""

    node: str
    unsaid: int | None = optional()  # earlier events of this node that were not recorded


class NodeAttends(NodeEvent, kind="attend"):
    """A node attends, possibly for a dry run."""


@dataclass(frozen=True, kw_only=True)
class NodeReady(NodeEvent, kind="ready"):
    """A node can take part."""

    examples: int
    class_counts: tuple[int, ...]
    pid: int
    device: str


class ManifestIgnored(NodeEvent, kind="manifest", level=logging.WARNING):
    """What a node said about its data is not kept for the history of models."""


@dataclass(frozen=True, kw_only=True)
class NodeUnfit(NodeEvent, kind="unfit", level=logging.WARNING):
    """A node says that it cannot take part."""

    problem: str


@dataclass(frozen=True, kw_only=True)
class NodeTurnedAway(NodeEvent, kind="turned-away", level=logging.WARNING):
    """A client was refused when it wanted to join: another version, a name that is taken, or the like."""

    problem: str


class NodePaused(NodeEvent, kind="paused"):
    """A node's owner paused it."""


class NodeLeaving(NodeEvent, kind="leaving"):
    """A node finishes its current work and leaves."""


class NodeLost(NodeEvent, kind="lost", level=logging.WARNING):
    """A node's attendance ended."""


@dataclass(frozen=True, kw_only=True)
class NodeAbsent(NodeEvent, kind="absent", level=logging.WARNING):
    """A connected node missed deadlines and is left out of rounds."""

    rounds: int


@dataclass(frozen=True, kw_only=True)
class ExamplesCapped(NodeEvent, kind="capped", level=logging.WARNING):
    """A node counts for fewer examples than it claims."""

    claimed: int
    counted: int


@dataclass(frozen=True, kw_only=True)
class ClientDrifts(NodeEvent, kind="drift", level=logging.WARNING):
    """A client's class means are farther from those of the others than usual. `node` is empty if it is not
    listed.
    """

    round: int
    times: float  # as far as a usual client
    chance: float  # of this for a usual client
    cosine: float  # between its mean and the memory, of the class that is farthest away
    classes: tuple[str, ...]  # the farthest first


@dataclass(frozen=True, kw_only=True)
class DriftOver(NodeEvent, kind="drift-over"):
    """A client's class means are where those of the others are again."""

    round: int


@dataclass(frozen=True, kw_only=True)
class WorkFailed(NodeEvent, kind="failure", level=logging.WARNING):
    """A node says that its work failed."""

    failure: str


@dataclass(frozen=True, kw_only=True)
class UploadPutBack(NodeEvent, kind="put-back"):
    """An upload had to give up its place in the budget to one that waited."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class ReplyUnusable(NodeEvent, kind="no-reply", level=logging.WARNING):
    """No usable reply came from a node that was asked."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class UpdateOutlier(NodeEvent, kind="outlier", level=logging.WARNING):
    """An update was far larger than the others."""

    times: float
    done: str


@dataclass(frozen=True, kw_only=True)
class RobustMeanSkipped(Event, kind="robust", level=logging.WARNING):
    """Too few updates came for `rounds.robust`."""

    updates: int


@dataclass(frozen=True, kw_only=True)
class MessageRejected(NodeEvent, kind="rejected", level=logging.WARNING):
    """A node sent something that no honest node sends."""

    call: str
    field: str


@dataclass(frozen=True, kw_only=True)
class NodeQuarantined(NodeEvent, kind="quarantine", level=logging.WARNING):
    """The server banned a node."""

    reason: str


class NodeDropped(NodeEvent, kind="drop", level=logging.WARNING):
    """An operator banned a node."""


@dataclass(frozen=True, kw_only=True)
class NodeReadmitted(NodeEvent, kind="readmit"):
    """An operator readmitted a node."""

    operator: str


@dataclass(frozen=True, kw_only=True)
class OtherCode(NodeEvent, kind="other-code", level=logging.WARNING):
    """A node runs other code of the foreign app than the server."""

    code: str


class ReplyTooLarge(NodeEvent, kind="too-large", level=logging.WARNING):
    """A reply to a foreign app is larger than the server accepts."""


@dataclass(frozen=True, kw_only=True)
class ReplyDropped(NodeEvent, kind="dropped-reply", level=logging.WARNING):
    """A reply that a foreign app had not pulled was dropped to make room for newer ones."""

    size: int
