"""The messages of fednc's own apps: the records of instructions and replies, and their names.

Server and client build and read messages only through this file, so that neither needs to know the other.
`train`: model, guide, the method's extra tensors -> trained model, class sums, changes of the extra tensors.
`query`: model -> class sums of that model; without a model: what a node holds, sums of its data, or of the losses
of candidates that it has tried.
`evaluate`: model, guide -> additive statistics.
After the last round, model, guide -> `query.calibrate`: losses at a grid of temperatures; `query.personal`:
statistics of the model before and after the client has adapted it to its own data.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fednc.common import versions
from fednc.common.config.run import RunConfig
from fednc.common.errors import ProtocolError, UnusableValuesError
from fednc.common.learning.class_memory import ClassMemory, ClassSums
from fednc.common.learning.frame import Frame
from fednc.common.wire import arrays
from fednc.common.wire.records import record_of

MODEL, GUIDE, RUN, EXTRA = "model", "guide", "run", "extra"
SUMS, STATS, METRICS = "sums", "stats", "metrics"
HELLO, MEMORY = "query.hello", "query.memory"
DATA_SUMS, DATA = "query.data_sums", "data"  # the question before round 1, and the record of its answer
PROBE = "query.probe"  # the question before that, see `common/tasks/probe.py`
CALIBRATE, PERSONAL = "query.calibrate", "query.personal"  # the questions after the last round
TRAIN, EVALUATE = "train", "evaluate"
UNNAMED = "unnamed"  # 1: the owner does not want this client's own metrics to be listed
EXAMPLES, HELD_OUT, CLASS_COUNTS = "num-examples", "held-out", "class-counts"
OWNED = "owned"  # prefix of a tensor's key: number of examples that trained it
MAX_LOSS = 2.0**128  # beyond float32; small enough that the sum over all examples of a federation stays finite
MAX_EXAMPLES = 1 << 32  # per client; the exact sum divides its precision among all announced examples
MAX_COUNT = 1 << 40  # an int64 sum of the data: eight million clients still fit into 64 bits
MAX_SUM = 2.0**300  # a float64 sum of the data: squares of float32 values over MAX_EXAMPLES


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """The part of every instruction besides arrays."""

    run_json: str
    server_round: int
    wants_sums: bool = False  # send class sums of the trained model with the update
    versions: tuple[str, ...] = ()  # of package, task and method at the server; see common/versions.py
    temperature: float = 1.0  # of the read-out, once it is known
    accepted: int | None = None  # last round that counts this client's reply, 0: none; None: not known

    @classmethod
    def under(
        cls,
        run: RunConfig,
        server_round: int,
        *,
        wants_sums: bool = False,
        temperature: float = 1.0,
        accepted: int | None = None,
    ) -> Instruction:
        """An instruction for this run, with the versions that are installed here."""
        return cls(
            run_json=run.for_clients(),
            server_round=server_round,
            wants_sums=wants_sums,
            versions=versions.of_run(run),
            temperature=temperature,
            accepted=accepted,
        )

    def to_record(self) -> ConfigRecord:
        """As a record."""
        record = ConfigRecord({"run": self.run_json, "round": self.server_round, "sums": self.wants_sums})
        if self.versions:
            record["versions"] = list(self.versions)
        if self.temperature != 1:
            record["temperature"] = self.temperature
        if self.accepted is not None:
            record["accepted"] = self.accepted
        return record

    @classmethod
    def of(cls, message: Message) -> Instruction:
        """Read it from a message. Raises ProtocolError."""
        record = record_of(message.content, RUN, ConfigRecord)
        if record is None:
            raise ProtocolError("the instruction has no 'run' record; is the server a fednc server?")
        told, temperature = record.get("versions", ()), record.get("temperature", 1.0)
        if not isinstance(temperature, float) or not 0 < temperature < math.inf:
            raise ProtocolError(f"the instruction's temperature is {temperature!r:.40}, expected a number above 0")
        accepted = record.get("accepted")
        if accepted is not None and (not isinstance(accepted, int) or accepted < 0):
            raise ProtocolError(f"the instruction's last accepted round is {accepted!r:.40}, expected 0 or more")
        return cls(
            run_json=str(record["run"]),
            server_round=int(record["round"]),  # type: ignore[arg-type]
            wants_sums=bool(record["sums"]),
            versions=tuple(map(str, told)) if isinstance(told, list) else (),
            temperature=temperature,
            accepted=accepted,
        )


def guide_record(frame: Frame, memory: ClassMemory, *, evaluates: bool = False) -> ArrayRecord:
    """Frame and memory as a record. The frame is only ever sent once.

    For evaluation also what the read-out needs besides: the memory's metric, or its ridge regression.
    """
    more: dict[str, Tensor] = {}
    if evaluates and memory.ridge_KD is not None and memory.ridge_K is not None:
        more = {"ridge": memory.ridge_KD, "intercept": memory.ridge_K}
    elif evaluates and memory.metric_DD is not None:
        more = {"metric": memory.metric_DD}
    return arrays.to_record({"frame": frame.etf_KD, "mean": memory.mean_KD, "seen": memory.seen_K, **more})


def frame_and_memory_of(content: RecordDict) -> tuple[Tensor, ClassMemory]:
    """(vertices of the frame, class memory) from an instruction, checked. Raises ProtocolError."""
    record = record_of(content, GUIDE, ArrayRecord)
    if record is None or set(record) - {"metric", "ridge", "intercept"} != {"frame", "mean", "seen"}:
        raise ProtocolError("the instruction has no complete 'guide' record")
    tensors = arrays.from_record(record)
    names = {
        "mean": "mean_KD",
        "seen": "seen_K",
        "metric": "metric_DD",
        "ridge": "ridge_KD",
        "intercept": "ridge_K",
    }
    return tensors["frame"], ClassMemory.from_tensors({names[k]: v for k, v in tensors.items() if k in names})


def instruction_content(
    instruction: Instruction,
    model: ArrayRecord | None = None,
    guide: ArrayRecord | None = None,
    extra: ArrayRecord | None = None,
) -> RecordDict:
    """Content of an instruction. Records are not copied, so many instructions share one model."""
    content = RecordDict({RUN: instruction.to_record()})
    content.update({k: v for k, v in ((MODEL, model), (GUIDE, guide), (EXTRA, extra)) if v is not None})
    return content


def extra_record(extra: Mapping[str, Tensor]) -> ArrayRecord | None:
    """The method's extra tensors as a record; None if there are none."""
    return arrays.to_record(extra) if extra else None


def extra_of(content: RecordDict) -> dict[str, Tensor]:
    """The method's extra tensors from an instruction, by key."""
    return arrays.from_record(record_of(content, EXTRA, ArrayRecord) or ArrayRecord())


def update_of(content: RecordDict) -> ArrayRecord:
    """Model and changes of the extra tensors from a reply, as one record. Raises ProtocolError without a model."""
    if record_of(content, MODEL, ArrayRecord) is None:
        raise ProtocolError(f"the reply has no {MODEL!r} record")
    update = ArrayRecord()
    for name in (MODEL, EXTRA):
        for key, array in (record_of(content, name, ArrayRecord) or ArrayRecord()).items():
            update[key] = array
    return update


def sums_record(sums: ClassSums) -> ArrayRecord:
    """Class sums as a record."""
    return arrays.to_record(sums.to_tensors())


def sums_of(content: RecordDict) -> ClassSums:
    """Class sums from a reply. Raises ProtocolError."""
    record = record_of(content, SUMS, ArrayRecord)
    if record is None:
        raise ProtocolError(f"the reply has no {SUMS!r} record")
    return ClassSums.from_tensors(arrays.from_record(record))


def examples_of(content: RecordDict) -> int:
    """The number of examples that a reply declares. Raises ProtocolError."""
    metrics = record_of(content, METRICS, MetricRecord)
    value = metrics.get(EXAMPLES) if metrics else None
    if not isinstance(value, int) or not 0 <= value <= MAX_EXAMPLES:
        raise ProtocolError(f"the reply declares {value!r:.80} examples, expected 0 to {MAX_EXAMPLES}")
    return value


def owned_of(content: RecordDict, keys: Collection[str], counted: int) -> dict[str, int]:
    """Weights of the tensors among `keys` that a client trained, scaled down if not all its examples count.

    Args:
        counted: number of the declared examples that count.

    Raises:
        ProtocolError: a weight is larger than the number of examples that the reply declares.
    """
    metrics, examples = record_of(content, METRICS, MetricRecord) or MetricRecord(), examples_of(content)
    found = {}
    for key in sorted(keys):
        weight = metrics.get(f"{OWNED}/{key}", 0)
        if not isinstance(weight, int) or not 0 <= weight <= examples:
            raise ProtocolError(f"tensor {key!r}: trained with {weight!r:.40} of {examples} examples")
        if weight:
            found[key] = -(-weight * min(counted, examples) // examples)  # rounded up
    return found


def loss_of(content: RecordDict) -> float:
    """The mean training loss that a reply reports. Raises ProtocolError."""
    metrics = record_of(content, METRICS, MetricRecord)
    loss = metrics.get("loss/loss") if metrics else None
    if not isinstance(loss, int | float):
        raise ProtocolError(f"the reply's loss is {loss!r:.40}, expected a number")
    if not abs(loss) <= MAX_LOSS:  # NaN compares false
        raise UnusableValuesError(f"the reply's loss is {loss!r:.40}, expected a finite number of float32")
    return float(loss)


def check_stats(stats: Mapping[str, Tensor], none: Mapping[str, Tensor]) -> None:
    """Raises ProtocolError unless `stats` has the names, shapes and types of `none`, and plausible numbers.

    An infinite loss is plausible: a read-out from the memory gives it for a class that no client has seen yet.
    """
    if {k: (v.shape, v.dtype) for k, v in stats.items()} != {k: (v.shape, v.dtype) for k, v in none.items()}:
        raise ProtocolError(f"statistics {sorted(stats)!s:.200} do not match those of the task, {sorted(none)}")
    wide = [value.double() for value in stats.values()]
    if not all(((v.abs() <= 2.0**53) | (v == math.inf)).all() for v in wide):  # NaN compares false
        raise UnusableValuesError("statistics contain NaN or absurdly large numbers")


def data_record(sums: Mapping[str, Tensor]) -> ArrayRecord:
    """Sums of the data as they travel; empty from a client that sends none."""
    return arrays.to_record(sums)


def data_of(content: RecordDict, none: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums of the data of a reply, with the names, shapes and types of `none`; {} from a client that sends none.

    Raises:
        ProtocolError: no record, or other names, shapes or types.
        UnusableValuesError: values that are not finite, or too large.
    """
    record = record_of(content, DATA, ArrayRecord)
    if record is None:
        raise ProtocolError(f"the reply has no {DATA!r} record")
    sums = arrays.from_record(record)
    if sums:
        check_data(sums, none)
    return sums


def check_data(sums: Mapping[str, Tensor], none: Mapping[str, Tensor]) -> None:
    """Raises ProtocolError unless `sums` has the names, shapes and types of `none`, and bounded values."""
    given, wanted = ({k: (list(v.shape), str(v.dtype)) for k, v in each.items()} for each in (sums, none))
    if given != wanted:
        raise ProtocolError(f"sums of the data are {given!s:.200}, the task declares {wanted!s:.200}")
    for name, value in sums.items():
        most = MAX_SUM if value.is_floating_point() else MAX_COUNT
        if not bool(((value >= -most) & (value <= most)).all()):  # NaN compares false
            raise UnusableValuesError(f"sum {name!r} of the data is not finite, or beyond {most:g}")
