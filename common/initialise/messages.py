"""The messages between server and clients during initialisation: three queries and their content.

`init_gradient`: scales -> direction of the client's gradient there, its norm, the loss. `init_slope`: scales, the
sum of all directions, what is minimised -> the client's share of the slope. `init_scales`: -> scales that the
client learnt alone. A client without enough examples for an answer sends an empty record. Model and frame are the
same in all messages, so they are sent once.

Legend: P scaled tensors, N weights in gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fednc.common.config.tables import InitSection
from fednc.common.errors import ProtocolError
from fednc.common.initialise.adam import largest_scale
from fednc.common.initialise.probe import Layout
from fednc.common.wire import arrays
from fednc.common.wire.records import record_of

GRADIENT, SLOPE, SCALES = "query.init_gradient", "query.init_slope", "query.init_scales"
INIT, ORDER, METRICS = "init", "init-order", "metrics"
UNIT, SUM, SCALE, SLOPES, NORM, LOSS = "unit", "sum", "scale", "slope", "norm", "loss"
REPORT = -1  # instead of an iteration: the batch for the report
_LARGE, _UNIT_ERROR = 2.0**53, 1e-3


@dataclass(frozen=True, kw_only=True)
class Order:
    """The part of a query besides arrays: which batch to use, and the weights of what is minimised."""

    iteration: int
    units: int = 1
    cosine: float = 0.0
    norm: float = 0.0
    square: float = 0.0

    @classmethod
    def of(cls, content: RecordDict) -> Order:
        """Read it from an instruction. Raises ProtocolError."""
        record = record_of(content, ORDER, ConfigRecord)
        if record is None or set(record) != {"iteration", "units", "cosine", "norm", "square"}:
            raise ProtocolError(f"the instruction has no complete {ORDER!r} record")
        return cls(**record)  # type: ignore[arg-type]

    def to_record(self) -> ConfigRecord:
        """As a record."""
        return ConfigRecord(asdict(self))


@dataclass(frozen=True)
class Answer:
    """One client's gradient: direction [N], length, mean loss."""

    unit_N: Tensor
    norm: float
    loss: float

    def to_content(self) -> RecordDict:
        """As a reply."""
        content = RecordDict({INIT: arrays.to_record({UNIT: self.unit_N})})
        content[METRICS] = MetricRecord({NORM: self.norm, LOSS: self.loss})
        return content


def forms(layout: Layout) -> dict[str, dict[str, Tensor]]:
    """Expected arrays of the replies to each query, with their types and shapes."""
    scale_P = torch.zeros(len(layout.scaled), dtype=torch.float64)
    return {GRADIENT: {UNIT: torch.zeros(layout.weights)}, SLOPE: {SLOPES: scale_P}, SCALES: {SCALE: scale_P}}


def tensor_in(content: RecordDict, key: str, like: Tensor) -> Tensor | None:
    """The one array of a message; None if the record is empty. Raises ProtocolError if it is not like `like`."""
    record = record_of(content, INIT, ArrayRecord)
    if record is None:
        raise ProtocolError(f"the message has no record {INIT!r}")
    if not record:
        return None
    found = arrays.from_record(record)
    value = found.get(key)
    if value is None or len(found) > 1 or (value.shape, value.dtype) != (like.shape, like.dtype):
        raise ProtocolError(f"record {INIT!r} holds {sorted(found)!s:.80}, expected {key!r} like {like.shape}")
    if not bool((value.abs() <= _LARGE).all()):  # NaN compares false
        raise ProtocolError(f"{key!r} contains NaN or absurdly large numbers")
    return value


def answer_in(content: RecordDict, layout: Layout) -> Answer | None:
    """One client's gradient; None if it has no examples. Raises ProtocolError."""
    unit_N = tensor_in(content, UNIT, forms(layout)[GRADIENT][UNIT])
    if unit_N is None:
        return None
    metrics = record_of(content, METRICS, MetricRecord) or MetricRecord()
    length, norm, loss = float(unit_N.double().norm()), _number(metrics, NORM), _number(metrics, LOSS)
    if length and abs(length - 1) > _UNIT_ERROR:
        raise ProtocolError(f"a direction of length {length:.4g}, expected 1 or 0")
    if norm < 0:
        raise ProtocolError(f"a norm of {norm:.4g}, expected 0 or more")
    return Answer(unit_N, norm, loss)


def scales_in(content: RecordDict, layout: Layout, section: InitSection) -> Tensor | None:
    """float64 [P]: scales that one client learnt; None if it has no examples. Raises ProtocolError."""
    scale_P = tensor_in(content, SCALE, forms(layout)[SCALES][SCALE])
    if scale_P is None:
        return None
    most = largest_scale(section.lr, section.iters)
    if bool((scale_P < layout.floor_P).any()) or float(scale_P.max()) > most:
        raise ProtocolError(
            f"scales of {float(scale_P.min()):.4g} to {float(scale_P.max()):.4g}, allowed are at most {most:.4g}"
        )
    return scale_P


def _number(metrics: Mapping[str, object], key: str) -> float:
    value = metrics.get(key)
    if not isinstance(value, float) or not math.isfinite(value) or abs(value) > _LARGE:
        raise ProtocolError(f"metric {key!r} is {value!r:.40}, expected a finite number")
    return value
