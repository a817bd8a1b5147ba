"""A trained model as one graph: preprocessing, model, read-out and probabilities, with a dynamic batch.

Legend: B batch, C classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fednc.common.errors import ConfigError
from fednc.common.model_export import ExportedModel
from fednc.common.peer_text import one_line

SCORES, PROBABILITIES, OUTPUT = "scores", "probabilities", "output"
_SAMPLES = 3  # examples to capture the graph with; 1 would fix the size of the batch


class ScoringGraph(nn.Module):
    """Raw inputs in; out (scores [B, C], probabilities [B, C]) of a classifier, else (output,)."""

    def __init__(self, exported: ExportedModel) -> None:
        super().__init__()
        self.exported = exported
        self._prepare = exported.task.graph_input().prepare

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        found = self.exported(self._prepare(inputs))
        return (found, self.exported.probabilities(found)) if self.exported.class_names else (found,)


def output_names(exported: ExportedModel) -> tuple[str, ...]:
    """Names of the graph's outputs, in order."""
    return (SCORES, PROBABILITIES) if exported.class_names else (OUTPUT,)


def sample_inputs(exported: ExportedModel, like: Tensor | None = None) -> Tensor:
    """A few raw inputs with arbitrary values.

    Args:
        like: raw inputs [B, ...] whose shape to use; None: the task's, or that of the first linear layer.

    Raises:
        ConfigError: the shape of an input is unknown.
    """
    given = exported.task.graph_input()
    shape = tuple(like.shape[1:]) if like is not None else given.shape or _of_first_layer(exported)
    if shape is None:
        raise ConfigError(
            f"the shape of an input of task {exported.task.name!r} is unknown: give --data SPEC with an example, "
            "or return the shape from the task's `graph_input`"
        )
    generator = torch.Generator().manual_seed(0)
    dtype = like.dtype if like is not None else given.dtype
    if dtype.is_floating_point:
        return torch.randn((_SAMPLES, *shape), generator=generator, dtype=dtype)
    return torch.randint(
        0, 2 if dtype is not torch.uint8 else 256, (_SAMPLES, *shape), generator=generator, dtype=dtype
    )


def _of_first_layer(exported: ExportedModel) -> tuple[int, ...] | None:
    """The shape of an input if the first layer with parameters is a linear one."""
    layers = (each for each in exported.model.modules() if not list(each.children()))
    first = next((each for each in layers if list(each.parameters(recurse=False))), None)
    return (first.in_features,) if isinstance(first, nn.Linear) else None


def capture(exported: ExportedModel, inputs: Tensor) -> torch.export.ExportedProgram:
    """The graph of a model, captured with `inputs`.

    Raises:
        ConfigError: the task's prediction is not one graph.
    """
    name = exported.task.name
    graph = ScoringGraph(exported).eval()
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(graph, (inputs,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as e:  # torch has no common class for what it cannot capture
        raise ConfigError(
            f"task {name!r} cannot be exported as a graph ({type(e).__name__}: {one_line(e, 200)}). Its "
            "prediction must not branch on values of tensors, nor depend on the size of the batch. "
            "`--safetensors` exports the weights of any task."
        ) from e
    for node in program.graph.nodes:  # they name files of this machine
        for key in ("stack_trace", "nn_module_stack", "from_node"):
            node.meta.pop(key, None)
    return program


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings of PyTorch and of its ONNX exporter about themselves."""
    noisy = logging.getLogger("torch.onnx")
    before = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        noisy.setLevel(before)
