"""The Open Inference Protocol over gRPC. Translates between its messages and `inference.py`.

Registered by the service's name and not with generated code: `protos/open_inference.proto` says why. Callers are
checked before a message is read. Messages are decoded here, because gRPC would log a traceback for a broken one.

Typed contents are answered with typed contents, raw ones with raw ones.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from fednc.ops.serving.access import Door
from fednc.ops.serving.inference import Inference, InferenceAnswer, InferenceRequest, InputTensor
from fednc.ops.serving.refusals import Problem, RequestRefusal
from fednc.ops.serving.tensors import BYTES, Array, check_shape, datatype_of, from_list, from_raw, to_raw
from fednc.protos import open_inference_pb2 as pb

log = logging.getLogger("fednc.serve")
SERVICE = "inference.GRPCInferenceService"
Context = grpc.aio.ServicerContext[Any, Any]
Answering = Callable[[Any], Awaitable[Message]]

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


class GrpcService:
    """The methods of the service."""

    def __init__(self, inference: Inference, door: Door) -> None:
        self._inference, self._door = inference, door

    def handler(self) -> grpc.GenericRpcHandler:
        """For `add_generic_rpc_handlers`."""
        methods: dict[str, tuple[type[Message], Answering]] = {
            "ServerLive": (pb.ServerLiveRequest, self._server_live),
            "ServerReady": (pb.ServerReadyRequest, self._server_ready),
            "ModelReady": (pb.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self._server_metadata),
            "ModelMetadata": (pb.ModelMetadataRequest, self._model_metadata),
            "ModelInfer": (pb.ModelInferRequest, self._infer),
        }
        probes = ("ServerLive", "ServerReady")
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.stream_unary_rpc_method_handler(
                self._guarded(name, kind, answer, is_open=name in probes), None, _serialised
            )
            for name, (kind, answer) in methods.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _guarded(self, name: str, kind: type[Message], answer: Answering, *, is_open: bool) -> Any:
        async def guarded(_messages: AsyncIterator[bytes], context: Context) -> Message:
            try:
                if not is_open:
                    self._door.admit_grpc(context)
                return await answer(_decoded(await context.read(), kind, name))
            except RequestRefusal as refusal:
                found = refusal
            except Exception:
                log.exception("%s: failed", name)
                found = RequestRefusal("the server failed; its log says why", Problem.INTERNAL)
            self._inference.metrics.refused.labels(found.problem.name.lower()).inc()
            await context.abort(found.problem.grpc_status, found.reason)
            raise AssertionError("abort raises")

        return guarded

    async def _server_live(self, _request: pb.ServerLiveRequest) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def _server_ready(self, _request: pb.ServerReadyRequest) -> Message:
        return pb.ServerReadyResponse(ready=self._inference.is_ready)

    async def _model_ready(self, request: pb.ModelReadyRequest) -> Message:
        return pb.ModelReadyResponse(ready=self._inference.is_model_ready(request.name, request.version))

    async def _server_metadata(self, _request: pb.ServerMetadataRequest) -> Message:
        return pb.ServerMetadataResponse(**self._inference.server_metadata())

    async def _model_metadata(self, request: pb.ModelMetadataRequest) -> Message:
        return pb.ModelMetadataResponse(**self._inference.model_metadata(request.name, request.version))

    async def _infer(self, request: pb.ModelInferRequest) -> Message:
        is_raw = bool(request.raw_input_contents)
        return _encoded(await self._inference.answer(_read(request)), is_raw)


def _serialised(message: Message) -> bytes:
    return message.SerializeToString()


def _decoded(message: Any, kind: type[Message], name: str) -> Message:
    if message is grpc.aio.EOF:
        raise RequestRefusal(f"the call ended without a message; {name} needs one")
    try:
        return kind.FromString(message)
    except DecodeError:
        raise RequestRefusal(f"{len(message)} bytes that are not a message of {name}") from None


def _read(request: pb.ModelInferRequest) -> InferenceRequest:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestRefusal(f"{len(raw)} raw contents for {len(request.inputs)} inputs; send one for each")
    inputs = []
    for place, each in enumerate(request.inputs):
        shape = check_shape(each.shape, each.name)
        if "shared_memory_region" in each.parameters:
            raise RequestRefusal("shared memory is not supported; send the data", Problem.UNSUPPORTED)
        if not raw:
            values = _typed(each, shape)
        elif each.HasField("contents"):
            raise RequestRefusal(f"input {each.name!r}: has both contents and raw contents")
        else:
            values = from_raw(each.datatype, shape, raw[place], each.name)
        inputs.append(InputTensor(each.name, each.datatype, values))
    for output in request.outputs:
        if "classification" in output.parameters:
            raise RequestRefusal("classification is not supported; ask with parameter top_k", Problem.UNSUPPORTED)
    return InferenceRequest(
        model=request.model_name,
        inputs=tuple(inputs),
        version=request.model_version,
        id=request.id,
        parameters={key: _parameter(value) for key, value in request.parameters.items()},
        outputs=tuple(each.name for each in request.outputs),
    )


def _typed(tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...]) -> Array:
    name = _CONTENTS.get(tensor.datatype)
    if name is None:
        raise RequestRefusal(
            f"input {tensor.name!r}: data type {tensor.datatype!r} has no typed contents; send raw contents"
        )
    values = getattr(tensor.contents, name)
    if tensor.datatype != BYTES:
        return from_list(tensor.datatype, shape, values, tensor.name)
    found = [len(each).to_bytes(4, "little") + each for each in values]
    return from_raw(BYTES, shape, b"".join(found), tensor.name)


def _parameter(value: pb.InferParameter) -> Any:
    kind = value.WhichOneof("parameter_choice")
    return getattr(value, kind) if kind else None


def _encoded(answer: InferenceAnswer, is_raw: bool) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.id)
    for key, value in answer.parameters.items():
        response.parameters[key].string_param = value
    for name, values in answer.outputs.items():
        output = response.outputs.add(name=name, datatype=datatype_of(values), shape=values.shape)
        if is_raw:
            response.raw_output_contents.append(to_raw(values))
        else:
            getattr(output.contents, _CONTENTS[output.datatype]).extend(values.ravel().tolist())
    return response
