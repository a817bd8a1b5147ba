"""How an update travels: whole, or as its difference to the global model in fewer bytes. One class for each codec.

To add one, write a class here and register it: run file, docs/config.md, client, server and bench ask `CODECS`.
The client encodes, the server decodes in the fold's own pass; an encoded array says by its serialisation type
which codec made it. What rounding takes from one round is kept at the client and added to the next (error
feedback), so that nothing is lost, only late.

Only float32 tensors of two and more dimensions are encoded: biases, norms and buffers are few and delicate.
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

BLOCK = 256  # values of `int8` that share a step
_STYPE = "fednc.delta."  # and the codec's name: serialisation type of an encoded array


class Codec:
    """Sends tensors as they are; derive `DeltaCodec` for one that does not.

    Attributes:
        name: its value of `link.codec`.
        summary: what it does to an update, for docs/config.md.
        error: largest error of a value of the difference, as a share of the tensor's largest; 0: exact.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    error: ClassVar[float] = 0.0


class DeltaCodec(Codec, ABC):
    """Sends differences to the global model."""

    @property
    def stype(self) -> str:
        """Serialisation type of what it encodes."""
        return _STYPE + self.name

    @abstractmethod
    def nbytes(self, count: int) -> int:
        """Bytes of `count` values: the server expects just as many."""

    @abstractmethod
    def to_bytes(self, delta_N: Tensor) -> Tensor:
        """uint8 [nbytes(N)] from float32 [N]."""

    @abstractmethod
    def from_bytes(self, byte_M: Tensor, count: int) -> Tensor:
        """float32 [count] from uint8 [nbytes(count)], whatever the bytes are."""


CODECS = Registry[Codec]("link.codec")


@CODECS.register
class Fp32(Codec):
    """The values as they are."""

    name, summary = "fp32", "the weights as they are"


@CODECS.register
class Bf16(DeltaCodec):
    """The difference in bfloat16; each value of it is off by at most 1/256 of itself."""

    name, summary = "bf16", "their change, rounded to half of the bytes"
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
    """The difference in blocks of 256 with a float32 step each; off by at most 1/254 of the block's largest.

    The steps of all blocks come first, then all values; the last block is as long as what is left.
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
    """The codec called `name`; None if it sends tensors as they are. Raises ConfigError: there is none."""
    codec = CODECS.get(name)
    return codec if isinstance(codec, DeltaCodec) else None


def is_encoded(stype: str) -> bool:
    """Whether an array of this serialisation type is a difference to the global model, by whichever codec."""
    return stype.startswith(_STYPE)


def is_encodable(tensor: Tensor) -> bool:
    """Whether a tensor is encoded at all."""
    return tensor.dtype is torch.float32 and tensor.ndim >= 2 and tensor.numel() > 0


def encode_update(
    state: Mapping[str, Tensor], reference: Mapping[str, Tensor], codec_name: str, residual: Mapping[str, Tensor]
) -> tuple[ArrayRecord, dict[str, Tensor]]:
    """(the update as it travels, what rounding took from it).

    Args:
        state: the trained model.
        reference: the global model that training started from, the same at the server.
        codec_name: one of `CODECS`.
        residual: what rounding took from this client's update of the round before; empty in the first.

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
    """A float32 difference in fewer bytes."""
    data = codec.to_bytes(delta.contiguous().reshape(-1))
    return arrays.make_array("float32", tuple(delta.shape), codec.stype, memoryview(data.numpy()))  # type: ignore[arg-type]


def decode(array: Array) -> Tensor:
    """The float32 difference that an encoded array stands for.

    Raises:
        ProtocolError: not an encoded array, one of a codec that is not known here, or one of another length than
            its shape says.
    """
    if not is_encoded(array.stype) or array.dtype != "float32":
        raise ProtocolError(f"array of {array.dtype} with serialisation {array.stype!r:.80} is no encoded update")
    codec = CODECS.entries.get(array.stype.removeprefix(_STYPE))
    if not isinstance(codec, DeltaCodec):
        known = ", ".join(each.name for each in CODECS if isinstance(each, DeltaCodec))
        raise ProtocolError(
            f"codec {array.stype.removeprefix(_STYPE)!r:.80} is not known here; known are {known}. "
            "Install the same version of fednc on both sides."
        )
    count = math.prod(array.shape)
    if len(array.data) != codec.nbytes(count):
        raise ProtocolError(f"encoded array of shape {array.shape} has {len(array.data)} bytes")
    raw = torch.frombuffer(bytearray(array.data), dtype=torch.uint8)
    return codec.from_bytes(raw, count).reshape(array.shape)
