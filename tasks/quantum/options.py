"""The keys of `[task]` for quantum classifiers: classes, inputs, encoding, circuit, and the classical networks.

Read by the task at the start of a run; docs/quantum.md lists them.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fednc.common.config.tables import Count, Positive
from fednc.common.tasks.classifier import ClassifierOptions

MOST_QUBITS = 12
SMALLEST_IMAGE = 4


class QuantumOptions(ClassifierOptions):
    """Classification by a circuit of qubits."""

    classes: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=2, description="names of the classes; class k is the k-th basis state of the measured qubits"
    )
    values: Annotated[int, Field(ge=0, le=4096)] = Field(
        0, description="for examples that are rows of numbers: how many there are in each"
    )
    size: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="for examples that are images: they become grey, and so many pixels high and wide"
    )
    model: Literal["circuit", "mlp", "cnn"] = Field(
        "circuit",
        description="`circuit`: qubits; `mlp`: a classical network with one hidden layer; `cnn`: one with two "
        "convolutions, for images",
    )
    width: Count = Field(32, description="for `mlp`: hidden units; for `cnn`: channels of the first convolution")
    encoding: Literal["basis", "angle", "amplitude"] = Field(
        "basis",
        description="`basis`: values 0 and 1 are the bits of a basis state, one qubit each; `amplitude`: the "
        "values divided by their length are the amplitudes; `angle`: qubits are rotated by the values",
    )
    qubits: Annotated[int, Field(ge=0, le=MOST_QUBITS)] = Field(
        0, description="0: as many as the encoding needs (`angle`: one for each value)"
    )
    layers: Annotated[int, Field(ge=1, le=256)] = Field(
        3, description="layers of trained rotations of every qubit, each followed by the entangler"
    )
    entangler: Literal["ring", "chain"] = Field(
        "ring", description="CNOTs from each qubit to the next; `ring`: also from the last one to the first one"
    )
    uploads: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="for `angle`: how often all qubits are rotated by values and entangled before the layers"
    )
    angle_scale: Positive = Field(math.pi, description="for `angle`: radians for a value of 1")

    @property
    def inputs(self) -> int:
        """F: values of an example."""
        return self.values or self.size * self.size

    @property
    def wires(self) -> int:
        """N: qubits."""
        needed = {"basis": self.inputs, "amplitude": max(1, math.ceil(math.log2(self.inputs)))}
        return self.qubits or needed.get(self.encoding, self.inputs)

    @property
    def measured(self) -> int:
        """Qubits that are measured: the fewest that have a basis state for each class."""
        return max(1, math.ceil(math.log2(len(self.classes))))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.values) == bool(self.size):
            raise ValueError("set task.values for rows of numbers, or task.size for images, and not both")
        if self.size and self.size < SMALLEST_IMAGE:
            raise ValueError(f"size: images have at least {SMALLEST_IMAGE} by {SMALLEST_IMAGE} pixels")
        if self.model == "cnn" and not self.size:
            raise ValueError("model: `cnn` is for images (task.size); use `mlp` for rows of numbers")
        if twice := sorted({name for name in self.classes if self.classes.count(name) > 1}):
            raise ValueError(f"classes: {', '.join(twice)} named more than once")
        if self.model == "circuit":
            self._check_circuit()
        return self

    def _check_circuit(self) -> None:
        if self.wires > MOST_QUBITS:
            raise ValueError(
                f"{self.inputs} values need {self.wires} qubits with the {self.encoding} encoding, and at most "
                f"{MOST_QUBITS} are simulated: use another encoding, set task.qubits, or lower task.size"
            )
        if self.encoding == "basis" and self.wires != self.inputs:
            raise ValueError(f"qubits: the basis encoding needs one for each of the {self.inputs} values; set 0")
        if self.encoding == "amplitude" and self.inputs > 2**self.wires:
            raise ValueError(
                f"qubits: {self.wires} have {2**self.wires} amplitudes, too few for {self.inputs} values"
            )
        if self.measured > self.wires:
            raise ValueError(
                f"classes: {len(self.classes)} classes need {self.measured} measured qubits, but the circuit has "
                f"{self.wires}"
            )
