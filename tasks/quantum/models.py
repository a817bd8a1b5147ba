"""The models of the task: a circuit, and two classical networks to compare with. Each gives a state of each
example.

Built by the task. The answer of a classical network is a state too: a diagonal one, with its probabilities. So the
frame, the class memory, the loss and the read-out are the same for all. Knows no data and no losses.

Legend: B batch, F values of an example, N qubits, A = 2^N amplitudes, L layers, S measured states, D = S^2
coordinates (`states.py`), K classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fednc.tasks.quantum import circuit, encodings, states
from fednc.tasks.quantum.options import QuantumOptions

ANGLES = "angle_LN3"  # the only parameter of a circuit


class Circuit(nn.Module):
    """Encoding, layers of rotations and entanglers, partial trace. Inputs [B, F], outputs [B, D]."""

    perm_A: Any  # a buffer that is not part of the state dict: it follows from the options

    def __init__(self, options: QuantumOptions) -> None:
        super().__init__()
        self._options = options
        drawn = 2 * math.pi * torch.rand(options.layers, options.wires, 3)
        self.angle_LN3 = nn.Parameter(drawn)
        self.register_buffer("perm_A", circuit.entangler(options.entangler, options.wires), persistent=False)

    def encoded(self, value_BF: Tensor) -> Tensor:
        """The states [B, A] that the layers start from."""
        options = self._options
        if options.encoding == "basis":
            return encodings.basis(value_BF)
        if options.encoding == "amplitude":
            return encodings.amplitude(value_BF, options.wires)
        turned_BF = options.angle_scale * value_BF
        return encodings.angle(turned_BF, options.wires, options.uploads, self.perm_A)

    def forward(self, value_BF: Tensor) -> Tensor:
        """Coordinates [B, D] of the reduced states."""
        with torch.autocast(value_BF.device.type, enabled=False):  # there are no complex numbers of 16 bits
            state_BA = circuit.after_layers(self.encoded(value_BF.float()), self.angle_LN3, self.perm_A)
            return states.coordinates(circuit.reduced(state_BA, self._options.measured))


class DiagonalStates(nn.Module):
    """Layers whose K scores become probabilities, as the coordinates [B, D] of diagonal states."""

    def __init__(self, layers: nn.Module, size: int) -> None:
        super().__init__()
        self.layers, self._size = layers, size

    def forward(self, value_BF: Tensor) -> Tensor:
        """See Circuit."""
        share_BK = self.layers(value_BF).float().softmax(dim=1)
        return F.pad(share_BK, (0, self._size * self._size - share_BK.shape[1]))


class Centred(nn.Module):
    """Subtracts the mean of the measurement operators, so that targets form a simplex."""

    centre_D: Any

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.register_buffer("centre_D", states.centre(classes, size), persistent=False)

    def forward(self, state_BD: Tensor) -> Tensor:
        """[B, D]."""
        centred_BD: Tensor = state_BD - self.centre_D
        return centred_BD


def perceptron(values: int, width: int, classes: int) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(values, width), nn.ReLU(), nn.Linear(width, classes))


def convolutions(size: int, width: int, classes: int) -> nn.Module:
    """Two convolutions with pooling, for grey images of `size` by `size`."""
    left = size // 4
    return nn.Sequential(
        nn.Unflatten(1, (1, size, size)),
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * left * left, classes),
    )


def build(options: QuantumOptions) -> nn.Module:
    """The model that `task.model` names, initialised from torch's global generator."""
    classes = len(options.classes)
    if options.model == "circuit":
        return Circuit(options)
    if options.model == "mlp":
        layers = perceptron(options.inputs, options.width, classes)
    else:
        layers = convolutions(options.size, options.width, classes)
    return DiagonalStates(layers, 2**options.measured)
