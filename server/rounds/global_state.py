"""What one round hands to the next: the global model, the class memory, and how far the run has come.

Made and restored by the run, changed by the strategy.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

from flwr.app import ArrayRecord
from torch import Tensor

from fednc.common.config.tables import TrainSection
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.memory_controls import Memories, Pool
from fednc.common.methods.api import ServerRound
from fednc.common.wire import arrays
from fednc.server.rounds.method_steps import MethodSteps


@dataclass(kw_only=True)
class GlobalState:
    """What a round starts from and what it leaves behind; all that a checkpoint must hold of the method."""

    model: dict[str, Tensor]
    memories: Memories
    completed: int = 0  # rounds
    methods: MethodSteps = field(default_factory=MethodSteps)
    extra: dict[str, Tensor] = field(default_factory=dict)  # what methods send beside the model
    kept: dict[str, Tensor] = field(default_factory=dict)  # what they keep on the server; it never travels
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
        params = {key: self.model[key] for key in self.methods.stepped & self.trained}
        extra, kept = self.methods.beside(params), self.methods.kept(params)
        self.extra = {key: value for key, value in self.extra.items() if key in extra}
        self.kept = {key: value for key, value in self.kept.items() if key in kept}

    def put(self, trained: ArrayRecord) -> None:
        """The model with these tensors in place of its own; what is not among them stays."""
        record = ArrayRecord()
        for key in self.model:
            record[key] = trained[key] if key in trained else self.record[key]
        self.replace_model(record)

    def advance(self, mean: ArrayRecord, *, share: float, examples: Collection[int], train: TrainSection) -> None:
        """The state after a round: the mean model, and what the steps of the methods make of it.

        Args:
            mean: over those who took part, of all that is `folded`; what it lacks stays.
            share: of all examples that all clients hold; the others changed nothing.
            examples: what each of those who took part counts for.
            train: how they trained.

        Raises:
            DivergedError: a step left values that are not finite.
        """
        stepped = [key for key in self.model if key in mean and key in self.methods.stepped]
        averaged = {key: arrays.to_tensor(mean[key]) for key in stepped}
        after = self.methods.step(
            ServerRound(
                before={key: self.model[key] for key in stepped},
                mean=averaged,
                beside=self.extra,
                news={key: arrays.to_tensor(mean[key]) for key in self.extra if key in mean},
                state=self.kept,
                share=share,
                examples=tuple(sorted(examples)),
                train=train,
            )
        )
        moved = {key: value for key, value in after.mean.items() if value is not averaged[key]}
        record = ArrayRecord()
        record.update(mean)
        record.update(arrays.to_record(moved))
        self.extra, self.kept = dict(after.beside), dict(after.state)
        self.put(record)
