"""The formats of an exported model as bytes: ONNX, torch.export's .pt2, and safetensors with a description.

Each graph is run before it is handed out, and must give the scores of the model itself.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from fednc.common.errors import ConfigError, MissingExtraError
from fednc.common.model_export import ExportedModel
from fednc.common.peer_text import one_line
from fednc.ops.export.description import Description
from fednc.ops.export.graph import ScoringGraph, capture, output_names, quiet

TOLERANCE = 1e-4  # of scores: absolute up to 1, relative beyond
EXTRA = "export"
_DESCRIPTION = "fednc.json"  # name of the description in a .pt2 file
Array = np.ndarray[Any, Any]


def to_onnx(exported: ExportedModel, inputs: Tensor, description: Description) -> bytes:
    """One ONNX file, checked with onnxruntime.

    Raises:
        MissingExtraError: the extra `export` is not installed.
        ConfigError: the model is not one graph, or ONNX has no equivalent of an operation.
    """
    if why := exported.task.graph_input().no_onnx:
        raise ConfigError(
            f"task {exported.task.name!r} cannot be exported to ONNX: {why}. Use --torch-export or --safetensors."
        )
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise MissingExtraError(e.name or "onnx", EXTRA, "--onnx") from e
    program = capture(exported, inputs)
    try:
        with quiet():
            found = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[description.input.name],
                output_names=list(description.outputs),
                dynamic_shapes=({0: "batch"},),
            )
        assert found is not None
        proto = found.model_proto
    except Exception as e:  # the exporter's errors have no common class
        raise ConfigError(
            f"task {exported.task.name!r} cannot be exported to ONNX ({type(e).__name__}: {one_line(e, 200)}). "
            "Use --torch-export or --safetensors."
        ) from e
    _clean(proto)
    onnx.helper.set_model_props(proto, description.texts())
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    _check(exported, inputs, lambda raw: session.run(None, {description.input.name: raw.numpy()}), "onnxruntime")
    return data


def to_torch_export(exported: ExportedModel, inputs: Tensor, description: Description) -> bytes:
    """One .pt2 file for `torch.export.load`. Raises ConfigError: the model is not one graph."""
    program = capture(exported, inputs)
    program.example_inputs = None  # torch would pickle them
    data = io.BytesIO()
    with quiet():
        torch.export.save(program, data, extra_files={_DESCRIPTION: description.model_dump_json(indent=2)})
        data.seek(0)
        loaded = torch.export.load(data).module()
    _check(exported, inputs, lambda raw: [each.detach().numpy() for each in loaded(raw)], "torch.export")
    return data.getvalue()


def to_safetensors(exported: ExportedModel, description: Description) -> bytes:
    """All tensors of model, frame and class memory, with the description in the file's metadata."""
    tensors = {key: value for key, value in exported.state_dict().items() if value is not None}
    return safetensors.torch.save(
        {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()},
        metadata=description.texts(),
    )


def _clean(proto: Any) -> None:
    """Remove what the exporter notes about the source code, with paths of this machine."""
    for owner in (proto.graph, *proto.functions):
        del owner.metadata_props[:]
        for each in (*owner.node, *owner.value_info):
            del each.metadata_props[:]
            each.doc_string = ""
    for each in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del each.metadata_props[:]


def _check(exported: ExportedModel, inputs: Tensor, run: Callable[[Tensor], Sequence[Array]], engine: str) -> None:
    """Raises ConfigError if the graph gives other outputs than the model, or does not take a batch of one."""
    for raw in (inputs, inputs[:1]):
        with torch.no_grad():
            wanted = ScoringGraph(exported)(raw)
        for name, one, other in zip(output_names(exported), wanted, run(raw), strict=True):
            worst = difference(one.numpy(), other)
            if worst > TOLERANCE:
                raise ConfigError(
                    f"the exported graph gives other {name} under {engine} than the model: they differ by "
                    f"{worst:.2g}, at most {TOLERANCE:g} is allowed. Use --safetensors."
                )


def difference(one: Array, other: Array) -> float:
    """The largest difference of two arrays: absolute up to 1, relative beyond; infinite if shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(one - other) / np.maximum(1.0, np.abs(one)))
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))
