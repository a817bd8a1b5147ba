"""The task: classification by measuring qubits after a circuit; the class memory is the mean state of each class.

Found by name through `fednc.common.tasks`. Must not know servers, clients or the link.

Legend: B batch, F values of an example, S measured states, D = S^2 coordinates of a state (`states.py`), K
    classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.learning.frame import Frame
from fednc.common.learning.heads import FrameHead
from fednc.common.learning.readout import READOUTS, MemoryReadOut, readout_of, tempered
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Batch, Purpose, Suggestion, TaskData
from fednc.common.tasks.classifier import ClassifierModel, ClassifierTask, as_classifier
from fednc.common.tasks.graph_input import GraphInput, preprocessed_input
from fednc.common.tasks.request_forms import RequestForm, preprocessed
from fednc.common.tasks.tensor_data import LabelledTensors
from fednc.tasks.quantum import models, report, sources, states
from fednc.tasks.quantum.options import QuantumOptions
from fednc.tasks.quantum.suggest import suggest

_LEAST_SHARE = 1e-12  # a probability of 0 has no logarithm
_OWN_LOSSES = ("dot", "calibrated-ce")  # methods that consist of a loss, which this task would ignore


class QuantumTask(ClassifierTask):
    """Classification by a circuit. Batches are (values [B, F], int64 labels [B]).

    The model gives a state of the measured qubits. Its probabilities of the first K basis states are the classes'.
    """

    name = "quantum"
    sources: ClassVar[tuple[str, ...]] = (sources.PARITY,)
    Options = QuantumOptions
    options: QuantumOptions

    def __init__(self, run: RunConfig) -> None:
        super().__init__(run)
        _check_method(run)
        if run.frame.kind != "simplex" or run.frame.vertices not in (0, len(self.class_names)):
            raise ConfigError(
                f"[frame]: the frame of task {self.name!r} are its measurements, one for each class: leave out "
                "kind and vertices"
            )

    # ---- frame and memory --------------------------------------------------------------------------------------

    @property
    def states(self) -> int:
        """S."""
        return int(2**self.options.measured)

    @property
    def feature_dim(self) -> int:
        """D. `frame.dim` plays no part."""
        return self.states**2

    @property
    def width(self) -> int:
        """D."""
        return self.feature_dim

    def frame(self, seed: int) -> Frame:
        """The centred measurement operators of the classes, which are a simplex ETF. Nothing is drawn."""
        return Frame.from_tensor(states.targets(len(self.class_names), self.states), seed)

    def check_class_sums(self, sum_KD: Tensor, count_K: Tensor) -> None:
        """The mean of a class's states must be a state. Raises ProtocolError."""
        states.check_states(sum_KD, count_K)

    # ---- data --------------------------------------------------------------------------------------------------

    def read(self, spec: str, purpose: Purpose) -> LabelledTensors:
        """The examples at `spec`. Raises DataError."""
        found = sources.read(spec, purpose, self.options, self.run.evaluate.test_share)
        return self.labelled(found.value_NF, found.labels, found.names, found.notes)

    @classmethod
    def suggest_options(cls, spec: str) -> Suggestion:
        """Options that fit the strings, rows or images at `spec`. Raises DataError."""
        return suggest(spec)

    def preprocessing(self) -> dict[str, Any]:
        """An example to model input."""
        image = {"image": f"grey, {self.options.size} by {self.options.size}, row by row, pixels in 0..1"}
        return {"values": self.options.inputs, **(image if self.options.size else {})}

    def request_forms(self) -> tuple[RequestForm, ...]:
        """Rows of values."""
        return (preprocessed((self.options.inputs,)),)

    def graph_input(self) -> GraphInput:
        """A row of values. ONNX has no complex numbers."""
        given = preprocessed_input((self.options.inputs,))
        is_circuit = self.options.model == "circuit"
        return (
            replace(given, no_onnx="ONNX has no complex numbers, which a circuit computes with")
            if is_circuit
            else given
        )

    # ---- model and loss ----------------------------------------------------------------------------------------

    def backbone(self) -> tuple[nn.Module, int]:
        """The circuit or the classical network, and D."""
        return models.build(self.options), self.feature_dim

    def projection(self, width: int) -> nn.Module:
        """Subtracts the mean of the targets; has no weights."""
        del width
        return models.Centred(len(self.class_names), self.states)

    def build_model(self) -> ClassifierModel:
        """A new model. The measurement is its head under every method, so nothing but the backbone is trained."""
        made = super().build_model()
        made.head = FrameHead(self.run.method.scale, trainable=False)
        return made

    def aggregation(self, key: str) -> Aggregation:
        """Angles are averaged on the circle: a rotation by 350 degrees and one by 10 are neighbours.

        A whole turn of a rotation only changes the sign of the state, which no measurement sees.
        """
        is_angle = key == f"{self.body}{models.ANGLES}"
        return Aggregation.CIRCULAR if is_angle else super().aggregation(key)

    def loss(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """The square loss 1/2 |h - onehot|^2 of the probabilities h of the classes."""
        del guide
        found = as_classifier(model)
        share_BK = self.shares(found.backbone(batch[0]))
        wanted_BK = nn.functional.one_hot(batch[1], share_BK.shape[1]).to(share_BK.dtype)
        loss_B = 0.5 * (share_BK - wanted_BK).square().sum(dim=1)
        if found.class_weight is not None:
            loss_B = loss_B * found.class_weight[batch[1]]
        loss = loss_B.mean()
        return loss, {"square": loss.detach()}

    def shares(self, state_BD: Tensor) -> Tensor:
        """The probabilities [B, K] of the classes in states: the first entries of their diagonals."""
        return state_BD[:, : len(self.class_names)]

    def same_for_each_batch(self, guide: Guide) -> bool:
        """The same operations for every batch, without a decision."""
        del guide
        return True

    # ---- memory and read-out -----------------------------------------------------------------------------------

    def embed(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(states [B, D], labels [B]); the length of a state's coordinates is at most 1."""
        return as_classifier(model).backbone(batch[0]), batch[1]

    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """Logarithms of the measured probabilities, so that their softmax are these probabilities.

        A read-out by the class memory compares states, once there is a memory.
        """
        state_BD = as_classifier(model).backbone(inputs)
        score_BK = self.shares(state_BD).clamp_min(_LEAST_SHARE).log()
        readout = readout_of(guide)
        if isinstance(readout, MemoryReadOut):
            by_memory_BK = readout.memory_scores(state_BD, guide, guide.method.scale)
            score_BK = torch.where(guide.seen_K.any(), by_memory_BK, score_BK)
        return tempered(score_BK, guide.temperature)

    def examples(self, model: nn.Module, data: TaskData, guide: Guide) -> Mapping[str, bytes]:
        """`helstrom.json`: how well any measurement could tell the classes apart, before and after the circuit."""
        return report.files(self.class_names, as_classifier(model).backbone, data, guide)


def _check_method(run: RunConfig) -> None:
    """Raises ConfigError: a method that needs a loss of its own, or memories in the frame's space."""
    method = run.method
    # to be compared with anything else, the memory would have to be in the frame's space
    unfit = [each.name for each in READOUTS if each.needs_memory and not isinstance(each, MemoryReadOut)]
    if method.loss in _OWN_LOSSES or method.compares_models:
        raise ConfigError(
            f"method.name {method.name!r} trains with a loss of its own, and task {run.task.name!r} with "
            "the square "
            "loss of measured probabilities: use fedavg, fedprox, fednc or another method without one"
        )
    if method.trains_with_memory or method.readout in unfit or method.memory_source != "memory":
        raise ConfigError(
            f"task {run.task.name!r} keeps mean states as its class memory, for the read-out only: leave "
            "method.anchor, centre, rehearsal and target_blend at 0, memory_source at its default, and readout "
            f"other than {', '.join(map(repr, unfit))}"
        )
