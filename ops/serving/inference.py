"""From a request of either protocol to its answer: chooses the version, reads the inputs, waits for the batch.

Used by `rest.py` and `grpc_service.py`, which only translate. Runs on the event loop; files are decoded in a small
pool of threads, so that a few large pictures cost neither the loop nor much memory.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import json
import logging
import math
import secrets
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.request_forms import RequestForm
from fednc.ops.serving.metrics import ServeMetrics
from fednc.ops.serving.models import LoadedVersion, ModelShelf, ServedModel
from fednc.ops.serving.refusals import Problem, RequestRefusal
from fednc.ops.serving.tensors import BYTES, NUMBERS, Array

log = logging.getLogger("fednc.serve")
MOST_EXAMPLES = 4096  # of one request
MOST_ID = 256  # characters
SERVER_NAME, EXTENSIONS = "fednc", ["binary_tensor_data"]
PLATFORM = "pytorch_fednc"
TOP_K = "top_k"
_DECODERS = 2


@dataclass(frozen=True)
class InputTensor:
    """One input tensor. `is_text`: its elements were strings of JSON."""

    name: str
    datatype: str
    values: Array
    is_text: bool = False


@dataclass(frozen=True)
class InferenceRequest:
    """A request, free of its protocol. `outputs`: names of the wanted outputs; none for all."""

    model: str
    inputs: tuple[InputTensor, ...]
    version: str = ""
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class InferenceAnswer:
    """An answer, free of its protocol."""

    model: str
    version: str
    id: str
    parameters: dict[str, Any]
    outputs: dict[str, Array]
    stale: str = ""


class Inference:
    """Answers requests from the models of a shelf."""

    def __init__(self, shelf: ModelShelf, metrics: ServeMetrics) -> None:
        self.shelf, self.metrics = shelf, metrics
        self.is_draining = False
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="fednc-decode")
        self._ids, self._prefix = itertools.count(1), secrets.token_hex(6)

    @property
    def is_ready(self) -> bool:
        """Whether every model answers and the server is not about to end."""
        return self.shelf.is_ready and not self.is_draining

    async def answer(self, request: InferenceRequest) -> InferenceAnswer:
        """The answer. Raises RequestRefusal; any other error is logged and becomes one without details."""
        started = time.perf_counter()
        try:
            model = self.shelf[request.model]
            request_id = _checked_id(request.id) or f"{self._prefix}-{next(self._ids)}"
            version = model.version_for(request_id, request.version)
            with version.in_use():
                outputs = await self._outputs(version, request)
        except RequestRefusal:
            raise
        except Exception as e:
            log.exception("model %s: a request failed", request.model)
            raise RequestRefusal("the server failed; its log says why", Problem.INTERNAL) from e
        version.answered.inc()
        version.seconds.observe(time.perf_counter() - started)
        parameters: dict[str, Any] = dict(version.lineage)
        if version.stale:
            parameters["model_stale"] = version.stale
        return InferenceAnswer(
            request.model, version.found.version, request_id, parameters, outputs, stale=version.stale
        )

    async def _outputs(self, version: LoadedVersion, request: InferenceRequest) -> dict[str, Array]:
        predictor = version.predictor
        best = _best(request.parameters, len(predictor.class_names))
        unknown = set(request.outputs) - {name for name, _, _ in predictor.outputs}
        if unknown:
            known = ", ".join(name for name, _, _ in predictor.outputs)
            raise RequestRefusal(f"no output {sorted(unknown)[0]!r}; this model has {known}")
        inputs = await self._inputs(predictor.forms, request.inputs)
        found = predictor.answer(await version.batcher(inputs), best)
        if request.outputs:
            return {name: found[name] for name in dict.fromkeys(request.outputs) if name in found}
        return found

    async def _inputs(self, forms: Mapping[str, RequestForm], given: tuple[InputTensor, ...]) -> Tensor:
        """Preprocessed inputs [B, ...]. Raises RequestRefusal."""
        if len(given) != 1 or given[0].name not in forms:
            names = ", ".join(repr(each.name) for each in given[:5]) or "none"
            raise RequestRefusal(f"give exactly one input, one of {', '.join(forms)}; given: {names}")
        form = forms[given[0].name]
        read = partial(_read, form, _fitting(form, given[0]))
        if not form.is_file:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self._decoders, read)

    def close(self) -> None:
        """End the decoders."""
        self._decoders.shutdown(wait=False)

    # ---- metadata ---------------------------------------------------------------------------------------------

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and extensions of this server."""
        return {"name": SERVER_NAME, "version": metadata.version("fednc"), "extensions": EXTENSIONS}

    def model_metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """Versions, inputs, outputs and properties of a model. Raises RequestRefusal."""
        model = self.shelf[name]
        chosen = _described(model, version)
        predictor = chosen.predictor
        inputs = [
            {
                "name": form.name,
                "datatype": form.datatype,
                "shape": [-1, *((-1,) if form.shape is None else form.shape)],
            }
            for form in predictor.forms.values()
        ]
        outputs = [
            {"name": name, "datatype": datatype, "shape": [-1, *shape]}
            for name, datatype, shape in predictor.outputs
        ]
        properties = {key: _text(value) for key, value in predictor.properties().items()}
        properties |= {"version": chosen.found.version, "digest": chosen.found.digest}
        if chosen.stale:
            properties["stale"] = chosen.stale
        return {
            "name": name,
            "versions": [each.found.version for each in model.versions],
            "platform": PLATFORM,
            "inputs": inputs,
            "outputs": outputs,
            "properties": properties,
        }

    def is_model_ready(self, name: str, version: str = "") -> bool:
        """Whether a model, or a version of it, answers. Raises RequestRefusal if there is none of that name."""
        model = self.shelf[name]
        if version:
            model.version_for("", version)
        return model.is_ready and not self.is_draining


def _described(model: ServedModel, version: str) -> LoadedVersion:
    if version:
        return model.version_for("", version)
    if model.champion is None:
        raise RequestRefusal(f"model {model.wanted.name!r} is not loaded yet", Problem.BUSY)
    return model.champion


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _checked_id(given: str) -> str:
    if len(given) > MOST_ID:
        raise RequestRefusal(f"id: {len(given)} characters, at most {MOST_ID} are allowed")
    return given


def _best(parameters: Mapping[str, Any], classes: int) -> int:
    """Number of classes to answer with. Raises RequestRefusal."""
    best = parameters.get(TOP_K, 1)
    if TOP_K in parameters and not classes:
        raise RequestRefusal(f"{TOP_K}: this model has no classes; leave it out")
    if not isinstance(best, int) or isinstance(best, bool) or not 1 <= best <= max(1, classes):
        raise RequestRefusal(f"{TOP_K}: {best!r}; expected a number from 1 to {classes}")
    return best


def _fitting(form: RequestForm, given: InputTensor) -> Array:
    """The values in the type and shape of `form`. Raises RequestRefusal."""
    values = given.values
    wanted = f"{form.datatype} of shape {[-1, *(form.shape or ('...',))] if form.shape != () else [-1]}"
    if form.datatype == BYTES and values.ndim == 2 and values.shape[1] == 1 and form.shape == ():
        values = values[:, 0]  # [B, 1], as some clients write a column
    if (given.datatype == BYTES) != (form.datatype == BYTES):
        raise RequestRefusal(f"input {form.name!r}: {given.datatype} was given, expected {wanted}")
    if form.shape is not None and not _has_shape(values.shape[1:], form.shape):
        raise RequestRefusal(f"input {form.name!r}: shape {list(values.shape)} was given, expected {wanted}")
    if not 1 <= len(values) <= MOST_EXAMPLES:
        raise RequestRefusal(f"input {form.name!r}: {len(values)} examples; send 1 to {MOST_EXAMPLES} at a time")
    if not math.prod(values.shape):
        raise RequestRefusal(f"input {form.name!r}: shape {list(values.shape)} has no values")
    if form.datatype == BYTES:
        return _from_base64(values, form.name) if form.is_file and given.is_text else values
    return _as_type(values, form)


def _has_shape(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(b in (-1, a) for a, b in zip(shape, wanted, strict=True))


def _as_type(values: Array, form: RequestForm) -> Array:
    dtype = NUMBERS[form.datatype]
    if values.dtype == dtype or dtype.kind == "f":
        with np.errstate(over="ignore"):
            return values.astype(dtype, copy=False)
    bounds = np.iinfo(dtype)
    if values.dtype.kind not in "iu" or values.min() < bounds.min or values.max() > bounds.max:
        raise RequestRefusal(
            f"input {form.name!r}: expected whole numbers from {bounds.min} to {bounds.max} ({form.datatype})"
        )
    return values.astype(dtype)


def _from_base64(values: Array, name: str) -> Array:
    found = np.empty(values.shape, dtype=object)
    try:
        found[:] = [base64.b64decode(each, validate=True) for each in values]
    except (binascii.Error, ValueError) as e:
        raise RequestRefusal(
            f"input {name!r}: in JSON, a file is a string of base64; this one is not ({e})"
        ) from e
    return found


def _read(form: RequestForm, values: Array) -> Tensor:
    try:
        return form.read(values)
    except DataError as e:
        raise RequestRefusal(f"input {form.name!r}: {e}") from e
