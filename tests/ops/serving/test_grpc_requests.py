"""gRPC: whatever a stranger sends gets a status and one sentence, and the server goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.ops.serving.models import WantedModel
from fednc.ops.serving.sources import FolderSource
from fednc.protos import open_inference_pb2 as pb
from support.served_models import SIZE, RunningServer, export_model

PATH = "/inference.GRPCInferenceService/"
SHAPE = [1, 1, SIZE, SIZE]
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
UNSUPPORTED, TOO_LARGE = grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = export_model(tmp_path_factory.mktemp("run"))
    with RunningServer(FolderSource(), WantedModel("digits", str(folder)), body_mib=1) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as opened:
        yield opened


def ending(channel: grpc.Channel, message: bytes, method: str = "ModelInfer") -> tuple[grpc.StatusCode, str]:
    try:
        channel.unary_unary(PATH + method)(message, timeout=20)
    except grpc.RpcError as e:
        return e.code(), e.details()
    return grpc.StatusCode.OK, ""


def request(raw: list[bytes] | None = None, contents: list[float] | None = None, **changes: Any) -> bytes:
    values = {"name": "input", "datatype": "FP32", "shape": SHAPE, **changes}
    found = pb.ModelInferRequest(model_name="digits", raw_input_contents=raw or [])
    tensor = found.inputs.add(**values)
    if contents is not None:
        tensor.contents.fp32_contents.extend(contents)
    return found.SerializeToString()


FULL = [bytes(4 * SIZE * SIZE)]


@pytest.mark.parametrize(
    ("message", "status", "why"),
    [
        (request(FULL), grpc.StatusCode.OK, ""),
        (request(contents=[0.5] * SIZE * SIZE), grpc.StatusCode.OK, ""),
        (b"\xff\xff", INVALID, "2 bytes that are not a message of ModelInfer"),
        (b"", NOT_FOUND, "no model ''"),
        (request([FULL[0][:-1]]), INVALID, "255 bytes of raw data"),
        (request(FULL * 2), INVALID, "2 raw contents for 1 inputs"),
        (request(FULL, contents=[1.0]), INVALID, "both contents and raw contents"),
        (request(contents=[1.0]), INVALID, "1 values, but shape"),
        (request(FULL, shape=[-1, 1, 8, 8]), INVALID, "none negative"),
        (request(FULL, datatype="FP16"), INVALID, "256 bytes of raw data, but FP16"),
        (request(datatype="BF16"), INVALID, "no typed contents"),
        (
            request(FULL, parameters={"shared_memory_region": pb.InferParameter(string_param="a")}),
            UNSUPPORTED,
            "shared",
        ),
        (request([np.full(SIZE * SIZE, np.nan, np.float32).tobytes()]), INVALID, "no finite scores"),
        (request([bytes(2 << 20)]), TOO_LARGE, ""),
    ],
)
def test_each_request_ends_as_it_should(
    channel: grpc.Channel, message: bytes, status: grpc.StatusCode, why: str
) -> None:
    found, text = ending(channel, message)
    assert found is status, text
    assert why in text
    assert "Traceback" not in text


@settings(max_examples=60)
@given(st.binary(max_size=200), st.sampled_from(["ModelInfer", "ModelMetadata", "ModelReady", "ServerMetadata"]))
def test_no_bytes_of_a_stranger_break_the_service(channel: grpc.Channel, message: bytes, method: str) -> None:
    status, _ = ending(channel, message, method)
    assert status in (grpc.StatusCode.OK, INVALID, NOT_FOUND)
    assert ending(channel, request(FULL))[0] is grpc.StatusCode.OK


def test_a_method_that_does_not_exist(channel: grpc.Channel) -> None:
    assert ending(channel, b"", "RepositoryIndex")[0] is UNSUPPORTED
