"""What one round hands to the next: the global model, the class memory, and how far the run has come.

Made and restored by the run, changed by the strategy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr.app import ArrayRecord
from torch import Tensor

from fednc.common import arrays
from fednc.common.memory import ClassMemory


@dataclass(kw_only=True)
class GlobalState:
    """What a round starts from and what it leaves behind; all that a checkpoint must hold of the method."""

    model: dict[str, Tensor]
    memory: ClassMemory
    completed: int = 0  # rounds
    extra: dict[str, Tensor] = field(default_factory=dict)  # what a method keeps on the server between rounds
    record: ArrayRecord = field(init=False)  # the model as it travels

    def __post_init__(self) -> None:
        self.replace_model(arrays.to_record(self.model))

    def replace_model(self, record: ArrayRecord) -> None:
        """The next global model. Its tensors share the record's memory: nobody may change them in place."""
        self.record = record
        self.model = arrays.from_record(record)
