"""Files for people: how well the classes can be told apart, and how well the task's measurement does so.

Called by the task with the server's own test data. Knows no round.

Legend: B batch, A amplitudes, S measured states, D coordinates of a state, K classes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import TaskData
from fednc.common.tasks.tensor_data import UNLABELLED
from fednc.tasks.quantum import states
from fednc.tasks.quantum.models import Circuit

NAME = "helstrom.json"
_BATCH = 256
_DIGITS = 6


def files(names: Sequence[str], model: nn.Module, data: TaskData, guide: Guide) -> Mapping[str, bytes]:
    """For each pair of classes the least error of any measurement: Helstrom's bound, of equally likely classes.

    `encoded`: of the mean encoded states, before the circuit, which no circuit can beat. `measured_qubits`: of the
    mean states of the measured qubits. `memory`: the same of the class memory. `measurement`: the error that the
    task's own measurement makes.
    """
    reached_KSS, before_KAA = _means(len(names), model, data)
    memory_KSS = states.matrices(guide.mean_KD.double())
    pairs = []
    held = [k for k in range(len(names)) if reached_KSS[k].any()]  # classes that the test data has
    for one, other in itertools.combinations(held, 2):
        found = {"measured_qubits": _error(reached_KSS, one, other), "measurement": _own(reached_KSS, one, other)}
        if before_KAA is not None:
            found["encoded"] = _error(before_KAA, one, other)
        if bool(guide.seen_K[one] & guide.seen_K[other]):
            found["memory"] = _error(memory_KSS, one, other)
        rounded = {key: round(value, _DIGITS) for key, value in sorted(found.items())}
        pairs.append({"classes": [names[one], names[other]], "least_error": rounded})
    return {NAME: json.dumps({"pairs": pairs}, indent=2).encode()}


def _error(mean_KSS: Tensor, one: int, other: int) -> float:
    return states.helstrom_error(mean_KSS[one], mean_KSS[other])


def _own(mean_KSS: Tensor, one: int, other: int) -> float:
    """The error of the measurement |k><k| that decides for the likelier of the two classes' outcomes.

    Of other outcomes it decides for the first class, as a fixed rule may.
    """
    outcome_KS = mean_KSS.diagonal(dim1=1, dim2=2).real
    return float(1 + outcome_KS[one, other] - outcome_KS[other, other]) / 2


def _means(classes: int, model: nn.Module, data: TaskData) -> tuple[Tensor, Tensor | None]:
    """Mean states of each class: of the measured qubits, and encoded if the model is a circuit."""
    reached, encoded = _Mean(classes), _Mean(classes)
    for value_BF, label_B in data.eval_batches(_BATCH):
        known_B = label_B != UNLABELLED
        value_BF, label_B = value_BF[known_B], label_B[known_B]
        reached.add(states.matrices(model(value_BF)), label_B)
        if isinstance(model, Circuit):
            state_BA = model.encoded(value_BF)
            encoded.add(state_BA[:, :, None] * state_BA.conj()[:, None, :], label_B)
    return reached.value, encoded.value if isinstance(model, Circuit) else None


class _Mean:
    """Running means of matrices by class."""

    def __init__(self, classes: int) -> None:
        self._sums: list[Tensor | int] = [0] * classes
        self._counts = [0] * classes

    def add(self, matrix_BSS: Tensor, label_B: Tensor) -> None:
        """Add the matrices of a batch."""
        for label in label_B.unique().tolist():
            mine = matrix_BSS[label_B == label]
            self._sums[label] = self._sums[label] + mine.sum(dim=0).to(torch.complex128)
            self._counts[label] += len(mine)

    @property
    def value(self) -> Tensor:
        """[K, S, S]; zero for a class without examples."""
        size = next(one.shape for one in self._sums if isinstance(one, Tensor))
        pairs = zip(self._sums, self._counts, strict=True)
        zero = torch.zeros(size, dtype=torch.complex128)
        return torch.stack([one.cpu() / count if isinstance(one, Tensor) else zero for one, count in pairs])
