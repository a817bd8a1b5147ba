"""The Open Inference Protocol over HTTP, with JSON or binary tensors: an ASGI application for uvicorn.

Translates between HTTP and `inference.py`. Bodies are bounded: each one in size and time, and all
that are held at once in size.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError
from pydantic_core import to_json

from fednc.common.peer_text import one_line
from fednc.ops.serving.access import Door
from fednc.ops.serving.inference import (
    BODY_S,
    HELD_BODIES,
    Inference,
    InferenceAnswer,
    InferenceRequest,
    InputTensor,
)
from fednc.ops.serving.refusals import Problem, RequestRefusal
from fednc.ops.serving.tensors import BYTES, Array, check_shape, datatype_of, from_list, from_raw, to_raw
from fednc.ops.web.http_protocol import CERTIFICATE

log = logging.getLogger("fednc.serve")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

HEADER_LENGTH = b"inference-header-content-length"
_JSON = (b"content-type", b"application/json")
_LIVE, _READY = "/v2/health/live", "/v2/health/ready"
OPEN_PATHS = frozenset({_LIVE, _READY})  # for probes, which have no credential
PROBED_PATHS = OPEN_PATHS | {"/metrics"}

Parameters = dict[str, StrictBool | StrictInt | StrictFloat | StrictStr]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class InputPart(_Part):
    """One input of a request."""

    name: StrictStr
    shape: list[StrictInt] = Field(max_length=16)
    datatype: StrictStr
    parameters: Parameters = {}
    data: list[Any] | None = None


class OutputPart(_Part):
    """One output that a request asks for."""

    name: StrictStr
    parameters: Parameters = {}


class RequestPart(_Part):
    """The JSON of a request."""

    id: StrictStr = ""
    parameters: Parameters = {}
    inputs: list[InputPart] = Field(max_length=16)
    outputs: list[OutputPart] = Field(default=[], max_length=16)


@dataclass(frozen=True)
class Response:
    """What is sent back."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)


class RestApp:
    """Answers `/v2/...` and `/metrics`."""

    def __init__(self, inference: Inference, door: Door, body_mib: int, *, only_probes: bool = False) -> None:
        """`body_mib`: most MiB in the body of one request. `only_probes`: answer health and metrics alone."""
        self._inference, self._door, self._only_probes = inference, door, only_probes
        self._most_bytes = body_mib << 20
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        assert scope["type"] == "http"
        try:
            response = await self._response(scope, receive)
        except RequestRefusal as refusal:
            response = self._refused(refusal)
        except Exception:
            log.exception("%s: failed", one_line(scope["path"], 200))
            response = self._refused(RequestRefusal("the server failed; its log says why", Problem.INTERNAL))
        length = (b"content-length", str(len(response.body)).encode())
        start = {"type": "http.response.start", "status": response.status, "headers": [*response.headers, length]}
        await send(start)
        body = b"" if scope["method"] == "HEAD" else response.body
        await send({"type": "http.response.body", "body": body})

    async def _response(self, scope: Scope, receive: Receive) -> Response:
        path: str = scope["path"]
        if self._only_probes and (path not in PROBED_PATHS or scope["method"] != "GET"):
            raise RequestRefusal("only health and metrics are answered here", Problem.NOT_FOUND)
        if path not in OPEN_PATHS:
            self._door.admit_http(scope.get(CERTIFICATE, b""), scope["headers"], scope["client"])
        if scope["method"] == "POST":
            return await self._infer(path, scope["headers"], receive)
        if scope["method"] not in ("GET", "HEAD"):
            raise RequestRefusal(f"{scope['method']} is not supported; use GET or POST", Problem.WRONG_METHOD)
        return self._look(path)

    def _look(self, path: str) -> Response:
        """Health, metadata and metrics."""
        match path.removesuffix("/").split("/")[1:]:
            case ["v2"]:
                return _as_json(self._inference.server_metadata())
            case ["v2", "health", "live"]:
                return _as_json({"live": True})
            case ["v2", "health", "ready"]:
                ready = self._inference.is_ready
                return _as_json({"ready": ready}, 200 if ready else Problem.BUSY.http_status)
            case ["v2", "models"]:
                return _as_json({"models": sorted(self._inference.shelf.models)})
            case ["v2", "models", name]:
                return _as_json(self._inference.model_metadata(name))
            case ["v2", "models", name, "versions", version]:
                return _as_json(self._inference.model_metadata(name, version))
            case ["v2", "models", name, "ready"]:
                return self._model_ready(name, "")
            case ["v2", "models", name, "versions", version, "ready"]:
                return self._model_ready(name, version)
            case ["v2", "models", _, "infer"] | ["v2", "models", _, "versions", _, "infer"]:
                raise RequestRefusal("use POST to infer", Problem.WRONG_METHOD)
            case ["metrics"]:
                return Response(
                    self._inference.metrics.page(), headers=((b"content-type", CONTENT_TYPE_LATEST.encode()),)
                )
        raise RequestRefusal(f"{path}: no such address; GET /v2/models lists the models", Problem.NOT_FOUND)

    def _model_ready(self, name: str, version: str) -> Response:
        ready = self._inference.is_model_ready(name, version)
        return _as_json({"name": name, "ready": ready}, 200 if ready else Problem.BUSY.http_status)

    async def _infer(self, path: str, headers: Headers, receive: Receive) -> Response:
        match path.split("/")[1:]:
            case ["v2", "models", name, "infer"]:
                version = ""
            case ["v2", "models", name, "versions", version, "infer"]:
                pass
            case _:
                raise RequestRefusal(f"{path}: nothing to POST to; POST /v2/models/NAME/infer", Problem.NOT_FOUND)
        given = dict(headers)
        if given.get(b"content-encoding", b"identity").lower() != b"identity":
            raise RequestRefusal("compressed bodies are not supported; send it without", Problem.UNSUPPORTED)
        held = 0
        try:
            body, held = await self._body(given, receive)
            part, blobs = _split(body, given.get(HEADER_LENGTH))
            request = _request(name, version, part, blobs)
            answer = await self._inference.answer(request)
        finally:
            self._held_bytes -= held
        return _encoded(answer, part)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> tuple[bytes, int]:
        """(the body, bytes that it counts for among all that are held)."""
        stated = headers.get(b"content-length", b"")
        if stated.isdigit() and len(stated) < 20 and int(stated) > self._most_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise RequestRefusal("the caller has left", Problem.TOO_SLOW)
                    piece = message.get("body", b"")
                    self._held_bytes += len(piece)
                    size += len(piece)
                    parts.append(piece)
                    if size > self._most_bytes:
                        raise self._too_large()
                    if self._held_bytes > HELD_BODIES * self._most_bytes:
                        raise RequestRefusal("busy: too many large requests; try again in a moment", Problem.BUSY)
                    if not message.get("more_body", False):
                        return (parts[0] if len(parts) == 1 else b"".join(parts)), size
        except TimeoutError:
            self._held_bytes -= size
            raise RequestRefusal(f"the body did not arrive within {BODY_S:g} s", Problem.TOO_SLOW) from None
        except BaseException:
            self._held_bytes -= size
            raise

    def _too_large(self) -> RequestRefusal:
        return RequestRefusal(f"the body is larger than {self._most_bytes >> 20} MiB", Problem.TOO_LARGE)

    def _refused(self, refusal: RequestRefusal) -> Response:
        self._inference.metrics.refused.labels(refusal.problem.name.lower()).inc()
        more: tuple[tuple[bytes, bytes], ...] = ()
        if refusal.problem is Problem.BUSY:
            more = ((b"retry-after", b"1"),)
        elif refusal.problem is Problem.UNAUTHENTICATED:
            more = ((b"www-authenticate", b"Bearer"),)
        return Response(to_json({"error": refusal.reason}), refusal.problem.http_status, (_JSON, *more))


def _as_json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status)


def _split(body: bytes, header_length: bytes | None) -> tuple[RequestPart, memoryview]:
    """(the JSON of a request, the binary data behind it)."""
    view = memoryview(body)
    if header_length is None:
        text, blobs = body, view[len(body) :]
    else:
        if not header_length.isdigit() or len(header_length) > 12 or int(header_length) > len(body):
            raise RequestRefusal("Inference-Header-Content-Length is not the length of the JSON in the body")
        text, blobs = bytes(view[: int(header_length)]), view[int(header_length) :]
    try:
        return RequestPart.model_validate_json(text), blobs
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise RequestRefusal(f"{place or 'the body'}: {first['msg']}") from e


def _request(model: str, version: str, part: RequestPart, blobs: memoryview) -> InferenceRequest:
    inputs, at = [], 0
    for each in part.inputs:
        size = each.parameters.get("binary_data_size")
        shape = check_shape(each.shape, each.name)
        if "shared_memory_region" in each.parameters:
            raise RequestRefusal("shared memory is not supported; send the data", Problem.UNSUPPORTED)
        if size is None:
            if each.data is None:
                raise RequestRefusal(f"input {each.name!r}: has no data")
            values = from_list(each.datatype, shape, each.data, each.name)
        else:
            if each.data is not None:
                raise RequestRefusal(f"input {each.name!r}: has both data and binary data")
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(blobs) - at:
                raise RequestRefusal(f"input {each.name!r}: the body has no {size!r} bytes of binary data for it")
            values = from_raw(each.datatype, shape, blobs[at : at + size], each.name)
            at += size
        inputs.append(
            InputTensor(each.name, each.datatype, values, is_text=size is None and each.datatype == BYTES)
        )
    if at != len(blobs):
        raise RequestRefusal(f"the body has {len(blobs) - at} bytes that belong to no input")
    for output in part.outputs:
        if output.parameters.get("classification"):
            raise RequestRefusal("classification is not supported; ask with parameter top_k", Problem.UNSUPPORTED)
    return InferenceRequest(
        model=model,
        inputs=tuple(inputs),
        version=version,
        id=part.id,
        parameters=part.parameters,
        outputs=tuple(each.name for each in part.outputs),
    )


def _encoded(answer: InferenceAnswer, part: RequestPart) -> Response:
    """The answer as JSON, with those outputs behind it in binary that the request wants so."""
    all_binary = part.parameters.get("binary_data_output") is True
    wanted = {each.name: each.parameters.get("binary_data", all_binary) is True for each in part.outputs}
    blobs, outputs = [], []
    for name, values in answer.outputs.items():
        output: dict[str, Any] = {"name": name, "datatype": datatype_of(values), "shape": values.shape}
        if wanted.get(name, all_binary):
            blob = to_raw(values)
            blobs.append(blob)
            output["parameters"] = {"binary_data_size": len(blob)}
        else:
            output["data"] = _listed(values)
        outputs.append(output)
    value = {
        "model_name": answer.model,
        "model_version": answer.version,
        "id": answer.id,
        "parameters": answer.parameters,
        "outputs": outputs,
    }
    text = to_json(value, inf_nan_mode="null")
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)
    if answer.stale:
        headers = (*headers, (b"fednc-model-stale", json.dumps(answer.stale).encode()))
    if not blobs:
        return Response(text, headers=headers)
    kind = (b"content-type", b"application/octet-stream")
    return Response(
        b"".join([text, *blobs]),
        headers=(kind, *headers[1:], (b"inference-header-content-length", str(len(text)).encode())),
    )


def _listed(values: Array) -> list[Any]:
    if values.dtype == object:
        return [each.decode(errors="replace") for each in values.flat]
    found: list[Any] = values.ravel().tolist()
    return found
