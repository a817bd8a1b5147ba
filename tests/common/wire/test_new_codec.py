"""A new codec is one class and one registration; without them its arrays are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message
from torch import Tensor

from fednc.cli.config_docs import page
from fednc.client.app.flower_app import app as fednc_app
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError, ProtocolError
from fednc.common.wire.messages import MODEL
from fednc.common.wire.update_codec import (
    CODECS,
    DeltaCodec,
    decode,
    delta_codec,
    encode,
    encode_update,
    is_encodable,
)
from fednc.protos import federation_pb2 as pb
from fednc.server.aggregation.mean import Fold
from fednc.server.link.reply_schema import ExpectedArray
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.contract_run import CLIENTS, assert_same_bits, config, run_on_local
from support.runs_on_grids import over_the_link


class Int4(DeltaCodec):
    """One float32 step for the whole tensor, then two values in a byte."""

    name, summary = "int4", "their change in an eighth of the bytes"
    error = 1 / 14

    def nbytes(self, count: int) -> int:
        """See DeltaCodec."""
        return 4 + (count + 1) // 2

    def to_bytes(self, delta_N: Tensor) -> Tensor:
        """See DeltaCodec."""
        step = (delta_N.abs().max() / 7).reshape(1)
        whole_N = torch.where(step > 0, delta_N / step, 0).round().clamp(-7, 7).to(torch.uint8) & 15
        pair_2 = torch.nn.functional.pad(whole_N, (0, len(whole_N) % 2)).reshape(-1, 2)
        return torch.cat([step.view(torch.uint8), pair_2[:, 0] + (pair_2[:, 1] << 4)])

    def from_bytes(self, byte_M: Tensor, count: int) -> Tensor:
        """See DeltaCodec."""
        whole = torch.stack([byte_M[4:] & 15, byte_M[4:] >> 4], dim=1).reshape(-1)[:count].float()
        return torch.where(whole > 7, whole - 16, whole) * byte_M[:4].clone().view(torch.float32)


@pytest.fixture
def int4() -> Iterator[DeltaCodec]:
    CODECS.register(Int4)
    yield Int4()
    CODECS.entries.pop(Int4.name, None)


def run_with(codec: str) -> RunConfig:
    return config(link={"codec": codec}, rounds={"total": 2})


def test_a_run_with_it_travels_over_the_link(int4: DeltaCodec, tmp_path: Path) -> None:
    sent: dict[str, str] = {}

    def watched(message: Message, context: Context) -> Message:
        reply = fednc_app(message, context)
        model = reply.content.array_records.get(MODEL, {})
        sent.update({key: array.stype for key, array in model.items()})
        return reply

    coarse = over_the_link(run_with("int4"), CLIENTS, watched, tmp_path, agreed=True)
    assert_same_bits(coarse, run_on_local(run_with("int4"), fednc_app, tmp_path))
    state = coarse.state.model
    assert {key for key, stype in sent.items() if stype == int4.stype} == {
        k for k in state if is_encodable(state[k])
    }
    whole = run_on_local(run_with("fp32"), fednc_app, tmp_path).state.model
    start = FederatedRun(run_with("fp32"), EventLog()).state.model
    moved, apart = (sum((whole[k] - other[k]).square().sum() for k in start) for other in (start, state))
    assert 0 < apart < 0.1 * moved, "most of each change arrives"
    assert "`int4`: their change in an eighth of the bytes" in page()


def test_decoded_values_are_within_its_error(int4: DeltaCodec) -> None:
    for size in (1, 2, 7, 300):
        delta = torch.randn(size, 3, generator=torch.Generator().manual_seed(size))
        array = encode(delta, int4)
        assert len(array.data) == int4.nbytes(3 * size)
        assert (decode(array) - delta).abs().max() <= int4.error * delta.abs().max() * (1 + 1e-6)


def test_an_unknown_codec_is_refused_by_name_and_not_mistaken_for_another(int4: DeltaCodec) -> None:
    reference = {"w": torch.zeros(8, 8)}
    record, _ = encode_update({"w": torch.randn(8, 8)}, reference, "int4", {})
    del CODECS.entries["int4"]
    fold = Fold(reference)
    fold.start(reference, [1])
    with pytest.raises(ProtocolError, match="codec 'int4' is not known here; known are bf16, int8"):
        fold.add(record, 1)
    assert fold.updates == 0
    with pytest.raises(
        ConfigError, match=r"link\.codec: 'int4' is not known here; choose one of fp32, bf16, int8"
    ):
        encode_update({"w": torch.randn(8, 8)}, reference, "int4", {})
    with pytest.raises(
        ConfigError, match=r"link\.codec: Input should be 'fp32', 'bf16' or 'int8' \(given: 'int4'\)"
    ):
        run_with("int4")


def test_the_size_of_int8_does_not_make_an_array_int8(int4: DeltaCodec) -> None:
    """The name decides, not the length: an array of another codec with a plausible length is not int8."""
    int8 = delta_codec("int8")
    assert int8 is not None
    array = encode(torch.randn(8, 8), int8)
    array.stype = int4.stype
    with pytest.raises(ProtocolError, match="bytes"):
        decode(array)


@pytest.mark.parametrize("codec_name", CODECS.names())
def test_the_schema_allows_the_runs_codec_and_no_other(codec_name: str, int4: DeltaCodec) -> None:
    expected = ExpectedArray.like(torch.zeros(8, 8), delta_codec(codec_name))
    for other in CODECS:
        if not isinstance(other, DeltaCodec):
            continue
        meta = pb.ArrayMeta(key="w", dtype="float32", shape=[8, 8], stype=other.stype, size=other.nbytes(64))
        assert ("serialisation" in expected.problem(meta)) == (other.name != codec_name)
