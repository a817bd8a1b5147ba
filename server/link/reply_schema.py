"""The form that the server expects of replies, known in advance: names, types, shapes, bytes.

Built from task and model for each stage; checked before an upload is granted. Foreign strategies have no
schema: for their replies only the limits in `message_limits.py` apply. Values are checked later, during
aggregation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fednc.common.errors import ConfigError
from fednc.common.initialise import messages
from fednc.common.initialise.probe import Layout
from fednc.common.peer_text import SHORT_TEXT
from fednc.common.tasks import personal, probe, temperature
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Task
from fednc.common.wire import arrays
from fednc.common.wire.messages import (
    CALIBRATE,
    DATA,
    DATA_SUMS,
    EVALUATE,
    EXTRA,
    HELLO,
    MEMORY,
    METRICS,
    MODEL,
    OWNED,
    PERSONAL,
    PROBE,
    STATS,
    SUMS,
    TRAIN,
)
from fednc.common.wire.update_codec import DeltaCodec, delta_codec, is_encodable
from fednc.protos import federation_pb2 as pb
from fednc.server.link.message_limits import ENTRIES, InvalidError

MOST_OWNED = ENTRIES // 2  # a reply has other values too
_SLACK_BYTES = 1024  # for the header of a serialised array


@dataclass(frozen=True)
class ExpectedArray:
    """The expected form of one array."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    codec: DeltaCodec | None = None  # the array may also be a difference encoded with this

    @classmethod
    def like(cls, tensor: Tensor, codec: DeltaCodec | None = None) -> ExpectedArray:
        """An array of the tensor's type and shape."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        nbytes = tensor.numel() * tensor.element_size()
        return cls(dtype, tuple(tensor.shape), nbytes, codec if is_encodable(tensor) else None)

    def problem(self, meta: pb.ArrayMeta) -> str:
        """What is wrong with an array; empty if nothing."""
        if (meta.dtype, tuple(meta.shape)) != (self.dtype, self.shape):
            return f"is {meta.dtype}{list(meta.shape)!s:.80}, expected {self.dtype}{list(self.shape)}"
        if self.codec and meta.stype == self.codec.stype:
            wanted = self.codec.nbytes(math.prod(self.shape))
            return "" if meta.size == wanted else f"has {meta.size} encoded bytes, expected {wanted}"
        if meta.stype not in (arrays.NPY, arrays.RAW_BF16):
            return f"has serialisation {meta.stype!r:.40}"
        if not self.nbytes <= meta.size <= self.nbytes + _SLACK_BYTES:
            return f"has {meta.size} bytes, expected {self.nbytes} plus a header"
        return ""


Arrays = Mapping[str, ExpectedArray]


@dataclass(frozen=True)
class ReplyForm:
    """The records of one kind of reply: required and optional ones.

    Attributes:
        may_lack: by record, arrays that a reply may leave out.
    """

    required: Mapping[str, Arrays] = field(default_factory=dict)
    optional: Mapping[str, Arrays] = field(default_factory=dict)
    may_lack: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def check(self, manifest: pb.Manifest) -> None:
        """Raises InvalidError unless the manifest has this form, plus at most one record of metrics."""
        missing = set(self.required) - {record.name for record in manifest.records}
        if missing:
            raise InvalidError("manifest.records", f"the reply has no record {sorted(missing)[0]!r}")
        allowed = {**self.required, **self.optional}
        for record in manifest.records:
            kind = record.WhichOneof("kind")
            if kind == "arrays" and record.name in self.optional and not record.arrays.items:
                continue  # the client has nothing to report
            if kind == "arrays" and record.name in allowed:
                _check_arrays(record, allowed[record.name], self.may_lack.get(record.name, frozenset()))
            elif (record.name, kind) != (METRICS, "metrics"):
                raise InvalidError(
                    "manifest.records", f"record {record.name!r:.80} of kind {kind} is not expected"
                )


@dataclass(frozen=True)
class ReplySchema:
    """The form of replies by message type, the number of classes, and the most members of them in an example.

    Attributes:
        parts: names of the parts of the task that a client may hold.
    """

    label_space: int
    members_per_example: int
    forms: Mapping[str, ReplyForm]
    parts: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        task: Task,
        model: Mapping[str, Tensor],
        extra: Mapping[str, Tensor] | None = None,
        initial: Layout | None = None,
        *,
        is_first: bool,
    ) -> ReplySchema:
        """The schema for one stage of a run of fednc's own apps.

        Args:
            model: the tensors that clients train in the stage.
            extra: tensors that a method sends beside the model.
            initial: what is scaled before round 1, if anything.
            is_first: whether it is the first stage, the only one in which second moments may be collected.

        Raises:
            ConfigError: an honest reply could not pass the limits on messages.
        """
        owned = frozenset(key for key in model if task.combining(key) == Aggregation.OWNERS)
        _check_owned(task, owned)
        codec = delta_codec(task.run.link.codec)
        weights = {key: ExpectedArray.like(value, codec) for key, value in model.items()}
        sums = {
            model: _layout(
                task.no_class_sums(moment=task.run.method.needs_moments(model, is_first=is_first)).to_tensors()
            )
            for model in ("global", "local")
        }
        additions = {EXTRA: _layout(extra)} if extra else {}
        return cls(
            label_space=task.label_space,
            members_per_example=task.members_per_example,
            parts=task.parts,
            forms={
                TRAIN: ReplyForm(
                    required={MODEL: weights, **additions}, optional={SUMS: sums["local"]}, may_lack={MODEL: owned}
                ),
                HELLO: ReplyForm(),
                DATA_SUMS: ReplyForm(optional={DATA: _layout(task.no_data_sums())}),
                MEMORY: ReplyForm(required={SUMS: sums["global"]}),
                EVALUATE: ReplyForm(optional={STATS: _layout(task.no_statistics())}),
                CALIBRATE: ReplyForm(optional={STATS: _layout(temperature.no_losses())}),
                PROBE: ReplyForm(optional={STATS: _layout(probe.no_losses(task.run))} if task.run.probe else {}),
                PERSONAL: ReplyForm(optional={STATS: _layout(personal.no_statistics(task))}),
                **{
                    question: ReplyForm(optional={messages.INIT: _layout(answer)})
                    for question, answer in (messages.forms(initial) if initial else {}).items()
                },
            },
        )

    @classmethod
    def of_declarations(cls, task: Task) -> ReplySchema:
        """For a run that has yet to begin: what clients may declare is known already, what they reply is not."""
        return cls(task.label_space, task.members_per_example, forms={}, parts=task.parts)

    def check(self, message_type: str, manifest: pb.Manifest) -> None:
        """Raises InvalidError if the reply does not have the form for this type of message."""
        if message_type in self.forms:
            self.forms[message_type].check(manifest)


def _check_owned(task: Task, owned: Collection[str]) -> None:
    """Raises ConfigError: the weights of tensors that are averaged over their owners do not fit into a reply."""
    longest = SHORT_TEXT - len(f"{OWNED}/")
    if len(owned) > MOST_OWNED or max(map(len, owned), default=0) > longest:
        raise ConfigError(
            f"task {task.name!r}: {len(owned)} keys are averaged over their owners, the longest with "
            f"{max(map(len, owned))} characters. At most {MOST_OWNED} keys of at most {longest} characters are "
            "allowed: use fewer or shorter names in the model, or Aggregation.MEAN"
        )


def _layout(tensors: Mapping[str, Tensor]) -> Arrays:
    return {key: ExpectedArray.like(value) for key, value in tensors.items()}


def _check_arrays(record: pb.Record, layout: Arrays, may_lack: frozenset[str]) -> None:
    given = {meta.key: meta for meta in record.arrays.items}
    odd = sorted((set(given) ^ set(layout)) - (may_lack - set(given)))[:3]
    if len(given) != len(record.arrays.items) or odd:
        raise InvalidError("manifest.arrays", f"tensor names of {record.name!r} differ, for instance {odd!s:.200}")
    for key, meta in given.items():
        if problem := layout[key].problem(meta):
            raise InvalidError("manifest.arrays", f"tensor {key!r} {problem}")
