"""A loaded model as the batcher and the protocol see it: preprocessed inputs in, named outputs out.

Runs in the thread of its batcher. Knows no request.

Legend: B batch, C classes, k best classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.model_export import ExportedModel
from fednc.common.tasks.request_forms import RequestForm
from fednc.ops.serving.batching import Outputs
from fednc.ops.serving.refusals import RequestRefusal
from fednc.ops.serving.tensors import NUMBERS, Array, texts

LABEL, CONFIDENCE, PROBABILITIES, CLASS, OUTPUT = "label", "confidence", "probabilities", "class", "output"
_INDEX, _FINITE = "index", "finite"
# (name, data type, shape without the batch) of each output
Output = tuple[str, str, tuple[int, ...]]


class Predictor:
    """One model on its device."""

    def __init__(self, model: ExportedModel, device: torch.device) -> None:
        self.model, self._device = model.to(device), device
        self.class_names = model.class_names if model.task.scores_classes else ()
        self.forms: dict[str, RequestForm] = {form.name: form for form in model.task.request_forms()}
        self._labels = texts(self.class_names)
        self._is_dense = False  # a class for each place of an example; known after the first batch

    @torch.inference_mode()
    def __call__(self, inputs: Tensor) -> Outputs:
        """The outputs for preprocessed inputs [B, ...].

        Raises:
            RequestRefusal: the model cannot take inputs of this shape.
        """
        try:
            scores = self.model(inputs.to(self._device))
        except (RuntimeError, IndexError, ValueError) as e:
            if isinstance(e, torch.cuda.OutOfMemoryError):
                raise
            raise RequestRefusal(f"the model cannot take inputs of shape {list(inputs.shape)}") from e
        return self._classified(scores) if self.class_names else _measured(scores)

    def _classified(self, scores: Tensor) -> Outputs:
        prob = self.model.probabilities(scores)
        self._is_dense = prob.ndim > 2
        confidence, index = prob.max(dim=1)
        finite = torch.isfinite(confidence)
        return {
            PROBABILITIES: prob.cpu().numpy(),
            CONFIDENCE: confidence.cpu().numpy(),
            _INDEX: index.cpu().numpy(),
            _FINITE: finite.cpu().numpy(),
        }

    def answer(self, found: Outputs, best: int) -> dict[str, Array]:
        """The outputs of one request by name, with the `best` most probable classes of each example.

        Raises RequestRefusal: an input has led to values that are no numbers.
        """
        if not found[_FINITE].all():
            raise RequestRefusal("the model gives no finite scores for these inputs; check their values")
        if not self.class_names:
            return {OUTPUT: found[OUTPUT]}
        prob = found[PROBABILITIES]
        if prob.ndim > 2:
            return {CLASS: found[_INDEX], CONFIDENCE: found[CONFIDENCE], PROBABILITIES: prob}
        if best == 1:
            index, confidence = found[_INDEX][:, None], found[CONFIDENCE][:, None]
        else:
            index = np.argsort(-prob, axis=1, kind="stable")[:, :best]
            confidence = np.take_along_axis(prob, index, axis=1)
        return {LABEL: self._labels[index], CONFIDENCE: confidence, PROBABILITIES: prob}

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The outputs, as metadata lists them."""
        if not self.class_names:
            return ((OUTPUT, "FP32", (-1,)),)
        if self._is_dense:
            return (
                (CLASS, "INT64", (-1, -1)),
                (CONFIDENCE, "FP32", (-1, -1)),
                (PROBABILITIES, "FP32", (-1, -1, -1)),
            )
        return (
            (LABEL, "BYTES", (-1,)),
            (CONFIDENCE, "FP32", (-1,)),
            (PROBABILITIES, "FP32", (len(self.class_names),)),
        )

    def warm_up(self, sizes: tuple[int, ...] = (1, 8)) -> None:
        """Compute a few batches, so that a model that cannot compute is found before anybody asks it.

        Raises:
            RequestRefusal: it cannot. A task that does not say what shape its inputs have is not tried.
        """
        form = next((each for each in self.forms.values() if each.datatype.startswith("FP")), None)
        if form is None or form.shape is None or min(form.shape, default=1) < 1:
            return
        for size in sizes:
            self(form.read(np.zeros((size, *form.shape), NUMBERS[form.datatype])))

    def properties(self) -> Mapping[str, Any]:
        """What a caller may want to know about the model: its task, classes and preprocessing."""
        run = self.model.run
        return {
            "task": self.model.task.name,
            "run": run.name,
            "run_digest": run.digest,
            "class_names": list(self.class_names),
            "preprocessing": self.model.task.preprocessing(),
        }


def _measured(scores: Tensor) -> Outputs:
    values = scores.float().cpu().numpy()
    return {OUTPUT: values, _FINITE: np.isfinite(values).reshape(len(values), -1).all(axis=1)}
