"""Codecs for updates: send them whole, or as the difference to the global model in fewer bytes.

To add a codec, write one class here and register it; run file, docs/config.md, client, server and bench use
`CODECS`. The client encodes; the server decodes while it aggregates. The serialisation type of an encoded array
names its codec. The client keeps the rounding error of each round and adds it to the next update (error feedback),
so nothing is lost, only delayed.

Only float32 tensors of two or more dimensions are encoded: biases, norms and buffers are small and sensitive.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fednc.common.errors import ProtocolError
from fednc.common.registry import Registry
from fednc.common.wire import arrays

BLOCK = 256  # `int8`: number of values that share a step
_STYPE = "fednc.delta."  # prefix of an encoded array's serialisation type, before the codec's name


class Codec:
    """Sends tensors unchanged. Derive from `DeltaCodec` for one that changes them.

    Attributes:
        name: its value of `link.codec`.
        summary: what it does to an update, for docs/config.md.
        error: largest error of a value of the difference, relative to the tensor's largest value; 0: exact.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    error: ClassVar[float] = 0.0


class DeltaCodec(Codec, ABC):
    """Sends encoded differences to the global model."""

    @property
    def stype(self) -> str:
        """Serialisation type of its encoded arrays."""
        return _STYPE + self.name

    @abstractmethod
    def nbytes(self, count: int) -> int:
        """Size in bytes of `count` encoded values; the server expects exactly this many."""

    @abstractmethod
    def to_bytes(self, delta_N: Tensor) -> Tensor:
        """uint8 [nbytes(N)] from float32 [N]."""

    @abstractmethod
    def from_bytes(self, byte_M: Tensor, count: int) -> Tensor:
        """float32 [count] from uint8 [nbytes(count)]. Must accept any bytes."""


CODECS = Registry[Codec]("link.codec")


@CODECS.register
class Fp32(Codec):
    """The values unchanged."""

    name, summary = "fp32", "the weights unchanged"


@CODECS.register
class Bf16(DeltaCodec):
    """The difference in bfloat16; the error of each value is at most 1/256 of itself."""

    name, summary = "bf16", "their change, rounded to half the bytes"
    error = 1 / 256

    def nbytes(self, count: int) -> int:
        """See DeltaCodec."""
        return 2 * count

    def to_bytes(self, delta_N: Tensor) -> Tensor:
        """See DeltaCodec."""
        return delta_N.bfloat16().view(torch.uint8)

    def from_bytes(self, byte_M: Tensor, count: int) -> Tensor:
        """See DeltaCodec."""
        del count
        return byte_M.view(torch.bfloat16).float()


@CODECS.register
class Int8(DeltaCodec):
    """The difference in blocks of 256 with a float32 step each; errors are at most 1/254 of the block's largest.

    The steps of all blocks come first, then all values. The last block may be shorter.
    """

    name, summary = "int8", "their change, rounded to a quarter of the bytes"
    error = 1 / 254

    def nbytes(self, count: int) -> int:
        """See DeltaCodec."""
        return 4 * math.ceil(count / BLOCK) + count

    def to_bytes(self, delta_N: Tensor) -> Tensor:
        """See DeltaCodec."""
        blocks = torch.nn.functional.pad(delta_N, (0, -delta_N.numel() % BLOCK)).reshape(-1, BLOCK)
        step = blocks.abs().amax(dim=1, keepdim=True) / 127
        whole = torch.where(step > 0, blocks / step, 0).round().clamp(-127, 127).to(torch.int8)
        return torch.cat([step.reshape(-1).view(torch.uint8), whole.reshape(-1)[: len(delta_N)].view(torch.uint8)])

    def from_bytes(self, byte_M: Tensor, count: int) -> Tensor:
        """See DeltaCodec."""
        blocks = math.ceil(count / BLOCK)
        step = byte_M[: 4 * blocks].clone().view(torch.float32)
        whole = byte_M[4 * blocks :].view(torch.int8).float()
        return whole * step.repeat_interleave(BLOCK)[:count]


def delta_codec(name: str) -> DeltaCodec | None:
    """The codec called `name`; None if it sends tensors unchanged. Raises ConfigError if there is none."""
    codec = CODECS.get(name)
    return codec if isinstance(codec, DeltaCodec) else None


def is_encoded(stype: str) -> bool:
    """Whether an array of this serialisation type is a difference to the global model, from any codec."""
    return stype.startswith(_STYPE)


def is_encodable(tensor: Tensor) -> bool:
    """Whether codecs encode this tensor."""
    return tensor.dtype is torch.float32 and tensor.ndim >= 2 and tensor.numel() > 0


def encode_update(
    state: Mapping[str, Tensor], reference: Mapping[str, Tensor], codec_name: str, residual: Mapping[str, Tensor]
) -> tuple[ArrayRecord, dict[str, Tensor]]:
    """(the encoded update, its rounding errors).

    Args:
        state: the trained model.
        reference: the global model that training started from, the same as at the server.
        codec_name: one of `CODECS`.
        residual: rounding errors of this client's update in the previous round; empty in the first.

    Raises:
        ConfigError: there is no such codec.
    """
    codec = delta_codec(codec_name)
    if codec is None:
        return arrays.to_record(state), {}
    whole = arrays.to_record({k: v for k, v in state.items() if not is_encodable(v)})
    record, left = ArrayRecord(), {}
    for key, value in state.items():
        if key in whole:
            record[key] = whole[key]
            continue
        wanted = value.detach().cpu() - reference[key].cpu()
        if key in residual:
            wanted += residual[key]
        record[key] = encode(wanted, codec)
        left[key] = wanted - decode(record[key])
    return record, left


def encode(delta: Tensor, codec: DeltaCodec) -> Array:
    """Encode a float32 difference."""
    data = codec.to_bytes(delta.contiguous().reshape(-1))
    return arrays.make_array("float32", tuple(delta.shape), codec.stype, memoryview(data.numpy()))  # type: ignore[arg-type]


def decode(array: Array) -> Tensor:
    """Decode the float32 difference from an encoded array.

    Raises:
        ProtocolError: the array is not encoded, its codec is not known here, or its length does not match its
            shape.
    """
    if not is_encoded(array.stype) or array.dtype != "float32":
        raise ProtocolError(
            f"array of {array.dtype} with serialisation {array.stype!r:.80} is not an encoded update"
        )
    codec = CODECS.entries.get(array.stype.removeprefix(_STYPE))
    if not isinstance(codec, DeltaCodec):
        known = ", ".join(each.name for each in CODECS if isinstance(each, DeltaCodec))
        raise ProtocolError(
            f"codec {array.stype.removeprefix(_STYPE)!r:.80} is not known here; known are {known}. "
            "Install the same version of fednc on both sides."
        )
    count = math.prod(array.shape)
    if len(array.data) != codec.nbytes(count):
        raise ProtocolError(
            f"encoded array of shape {array.shape} has {len(array.data)} bytes, expected {codec.nbytes(count)}"
        )
    raw = torch.frombuffer(bytearray(array.data), dtype=torch.uint8)
    return codec.from_bytes(raw, count).reshape(array.shape)
