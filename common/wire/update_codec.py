"""How an update travels: whole, or as its difference to the global model in fewer bits.

The client encodes, the server decodes in the fold's own pass; an encoded array says by its serialisation type what
it is. What rounding takes from one round is kept at the client and added to the next (error feedback), so that
nothing is lost, only late.

* `fp32`: the values as they are.
* `bf16`: the difference in bfloat16; each value of it is off by at most 1/256 of itself.
* `int8`: the difference in blocks of 256 with a float32 step each; off by at most 1/254 of the block's largest.

Only float32 tensors of two and more dimensions are encoded: biases, norms and buffers are few and delicate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fednc.common.errors import ProtocolError
from fednc.common.wire import arrays

BLOCK = 256
STYPES = {"bf16": "fednc.delta.bf16", "int8": "fednc.delta.int8"}
CODECS = ("fp32", *STYPES)


def is_encoded(stype: str) -> bool:
    """Whether an array of this serialisation type is a difference to the global model."""
    return stype in STYPES.values()


def is_encodable(tensor: Tensor) -> bool:
    """Whether a tensor is encoded at all."""
    return tensor.dtype is torch.float32 and tensor.ndim >= 2 and tensor.numel() > 0


def nbytes(stype: str, count: int) -> int:
    """Bytes of `count` values under a serialisation type of this page."""
    return 2 * count if stype == STYPES["bf16"] else 4 * math.ceil(count / BLOCK) + count


def encode_update(
    state: Mapping[str, Tensor], reference: Mapping[str, Tensor], codec: str, residual: Mapping[str, Tensor]
) -> tuple[ArrayRecord, dict[str, Tensor]]:
    """(the update as it travels, what rounding took from it).

    Args:
        state: the trained model.
        reference: the global model that training started from, the same at the server.
        codec: one of `CODECS`.
        residual: what rounding took from this client's update of the round before; empty in the first.
    """
    whole = arrays.to_record({k: v for k, v in state.items() if codec == "fp32" or not is_encodable(v)})
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


def encode(delta: Tensor, codec: str) -> Array:
    """A float32 difference in fewer bits."""
    data = _to_bf16(delta) if codec == "bf16" else _to_int8(delta)
    return arrays.make_array("float32", tuple(delta.shape), STYPES[codec], memoryview(data.numpy()))  # type: ignore[arg-type]


def decode(array: Array) -> Tensor:
    """The float32 difference that an encoded array stands for.

    Raises:
        ProtocolError: not an encoded array, or one of another length than its shape says.
    """
    if not is_encoded(array.stype) or array.dtype != "float32":
        raise ProtocolError(f"array of {array.dtype} with serialisation {array.stype!r} is no encoded update")
    count = math.prod(array.shape)
    if len(array.data) != nbytes(array.stype, count):
        raise ProtocolError(f"encoded array of shape {array.shape} has {len(array.data)} bytes")
    raw = torch.frombuffer(bytearray(array.data), dtype=torch.uint8)
    flat = raw.view(torch.bfloat16).float() if array.stype == STYPES["bf16"] else _from_int8(raw, count)
    return flat.reshape(array.shape)


def _to_bf16(delta: Tensor) -> Tensor:
    return delta.contiguous().reshape(-1).bfloat16().view(torch.uint8)


def _to_int8(delta: Tensor) -> Tensor:
    """Steps of all blocks, then all values; the last block is as long as what is left."""
    flat = delta.contiguous().reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).reshape(-1, BLOCK)
    step = blocks.abs().amax(dim=1, keepdim=True) / 127
    whole = torch.where(step > 0, blocks / step, 0).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([step.reshape(-1).view(torch.uint8), whole.reshape(-1)[: flat.numel()].view(torch.uint8)])


def _from_int8(raw: Tensor, count: int) -> Tensor:
    blocks = math.ceil(count / BLOCK)
    step = raw[: 4 * blocks].clone().view(torch.float32)
    whole = raw[4 * blocks :].view(torch.int8).float()
    return whole * step.repeat_interleave(BLOCK)[:count]
