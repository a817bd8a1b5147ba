"""The state that one round passes to the next: the global model, the class memory, the number of rounds.

Created and restored by the run, changed by the strategy.
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
    """The state before and after a round; everything about the method that a checkpoint must contain."""

    model: dict[str, Tensor]
    memories: Memories
    completed: int = 0  # rounds
    methods: MethodSteps = field(default_factory=MethodSteps)
    extra: dict[str, Tensor] = field(default_factory=dict)  # tensors that methods send beside the model
    kept: dict[str, Tensor] = field(default_factory=dict)  # tensors that methods keep on the server, never sent
    # By node, the last round that counts its reply. Never changed in place. None: an older checkpoint did not say.
    accepted: dict[int, int] | None = field(default_factory=dict)
    trained: frozenset[str] | None = None  # tensors of the model that the current stage trains; None: all
    record: ArrayRecord = field(init=False)  # the model, encoded for sending

    def __post_init__(self) -> None:
        self.replace_model(arrays.to_record(self.model))

    def snapshot(self) -> Self:
        """A copy of the state. Shares the tensors, because they are never changed in place."""
        return copy.copy(self)

    def go_back_to(self, earlier: Self) -> None:
        """Return to the state that `snapshot` returned."""
        self.__dict__.update(earlier.__dict__)

    def accept(self, server_round: int, nodes: Collection[int]) -> None:
        """Note that this round counts the replies of these nodes."""
        if self.accepted is not None:
            self.accepted = {**self.accepted, **dict.fromkeys(nodes, server_round)}

    def complete(self, server_round: int) -> None:
        """Note that this round is complete."""
        self.completed = server_round

    def remember(self, pool: Pool, momentum: float, *, warming_up: bool, ridge: float = 0.0) -> None:
        """Update the memory with the class sums of a round. `ridge`: see `ClassMemory.update`."""
        self.memories = self.memories.updated(pool, momentum, warming_up=warming_up, ridge=ridge)

    @property
    def memory(self) -> ClassMemory:
        """The real class memory, also if a stand-in is used in its place."""
        return self.memories.real

    def replace_model(self, record: ArrayRecord) -> None:
        """Set the global model. Its tensors share the record's memory: never change them in place."""
        self.record = record
        self.model = arrays.from_record(record)

    @property
    def folded(self) -> dict[str, Tensor]:
        """The tensors that a client sends: those that it trained, and changes of the extra tensors."""
        return {**self.trainable, **self.extra}

    @property
    def trainable(self) -> dict[str, Tensor]:
        """The tensors of the model that the current stage trains."""
        return {key: value for key, value in self.model.items() if self.trained is None or key in self.trained}

    def narrow(self, trained: Collection[str]) -> None:
        """Train only these tensors of the model from now on; the others stay the same, bit for bit."""
        self.trained = frozenset(trained)
        params = {key: self.model[key] for key in self.methods.stepped & self.trained}
        extra, kept = self.methods.beside(params), self.methods.kept(params)
        self.extra = {key: value for key, value in self.extra.items() if key in extra}
        self.kept = {key: value for key, value in self.kept.items() if key in kept}

    def put(self, trained: ArrayRecord) -> None:
        """Replace these tensors of the model; the others stay."""
        record = ArrayRecord()
        for key in self.model:
            record[key] = trained[key] if key in trained else self.record[key]
        self.replace_model(record)

    def advance(
        self,
        mean: ArrayRecord,
        *,
        share: float,
        examples: Collection[int],
        train: TrainSection,
        stretch: float = 1.0,
    ) -> None:
        """Move to the state after a round: the mean model, changed by the steps of the methods.

        Args:
            mean: of the updates, for the tensors in `folded`; tensors that it lacks stay.
            share: the examples in this round as a share of all examples that clients hold.
            examples: the number of examples that each participant counts for.
            train: the training settings of the round.
            stretch: `Task.stretch`; steps get the mean after it.

        Raises:
            DivergedError: a step produced values that are not finite.
        """
        stepped = [key for key in self.model if key in mean and key in self.methods.stepped]
        averaged = {key: arrays.to_tensor(mean[key]) for key in stepped}
        stretched = averaged if stretch == 1.0 else self._stretched(averaged, stretch)
        after = self.methods.step(
            ServerRound(
                before={key: self.model[key] for key in stepped},
                mean=stretched,
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

    def _stretched(self, mean: dict[str, Tensor], stretch: float) -> dict[str, Tensor]:
        return {key: self.model[key] + stretch * (value - self.model[key]) for key, value in mean.items()}
