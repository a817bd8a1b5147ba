"""What one round hands to the next: the global model, the class memory, and how far the run has come.

Made and restored by the run, changed by the strategy.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.memory_controls import Memories, Pool
from fednc.common.wire import arrays, messages


@dataclass(kw_only=True)
class GlobalState:
    """What a round starts from and what it leaves behind; all that a checkpoint must hold of the method."""

    model: dict[str, Tensor]
    memories: Memories
    completed: int = 0  # rounds
    extra: dict[str, Tensor] = field(default_factory=dict)  # what a method keeps on the server between rounds
    trained: frozenset[str] | None = None  # tensors of the model that the stage under way trains; None: all
    record: ArrayRecord = field(init=False)  # the model as it travels

    def __post_init__(self) -> None:
        self.replace_model(arrays.to_record(self.model))

    def snapshot(self) -> Self:
        """The state as it is now. Tensors are never changed in place, so they are shared."""
        return copy.copy(self)

    def go_back_to(self, earlier: Self) -> None:
        """Be what `snapshot` gave."""
        self.__dict__.update(earlier.__dict__)

    def complete(self, server_round: int) -> None:
        """This round is over."""
        self.completed = server_round

    def remember(self, pool: Pool, momentum: float, *, warming_up: bool) -> None:
        """Take the class sums of a round into the memory."""
        self.memories = self.memories.updated(pool, momentum, warming_up=warming_up)

    @property
    def memory(self) -> ClassMemory:
        """The class memory, whatever stands in for it where it is used."""
        return self.memories.real

    def replace_model(self, record: ArrayRecord) -> None:
        """The next global model. Its tensors share the record's memory: nobody may change them in place."""
        self.record = record
        self.model = arrays.from_record(record)

    @property
    def folded(self) -> dict[str, Tensor]:
        """Names, shapes and dtypes of what a client sends: what it trained, changes of the extra tensors."""
        return {**self.trainable, **self.extra}

    @property
    def trainable(self) -> dict[str, Tensor]:
        """The tensors of the model that the stage under way trains."""
        return {key: value for key, value in self.model.items() if self.trained is None or key in self.trained}

    def narrow(self, trained: Collection[str]) -> None:
        """From now on only these tensors of the model are trained; the others stay as they are, bit for bit."""
        self.trained = frozenset(trained)
        kept = {messages.control_key(key) for key in trained}
        self.extra = {key: value for key, value in self.extra.items() if key in kept}

    def advance(self, mean: ArrayRecord, share: float) -> None:
        """The state after a round: the mean model; extra tensors plus their mean change.

        Args:
            mean: over those who took part, of all that is `folded`; what it lacks stays.
            share: of all examples that they hold; the others changed nothing.
        """
        record = ArrayRecord()
        for key in self.model:
            record[key] = mean[key] if key in mean else self.record[key]
        changed = {
            key: value + share * arrays.to_tensor(mean[key]) for key, value in self.extra.items() if key in mean
        }
        self.extra = {**self.extra, **changed}
        self.replace_model(record)


def control_variates(model: nn.Module, shared: Collection[str]) -> dict[str, Tensor]:
    """Extra tensors of a method with control variates: zeros like each shared parameter."""
    found = {name: p for name, p in model.named_parameters() if name in shared}
    return {messages.control_key(name): torch.zeros_like(p) for name, p in found.items()}
