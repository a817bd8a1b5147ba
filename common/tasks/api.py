"""The task interface: everything the server, the strategy and the link know about a workload.

A task is one folder under `tasks/` with a class that derives from `Task`; it is found by name through
`fednc.common.tasks.discovery.get`. Nothing outside that folder may depend on which task runs.

Legend: B batch, D feature width, K label space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from fednc.common.config.run import RunConfig, explain
from fednc.common.config.tables import SplitSection, TrainSection
from fednc.common.errors import ConfigError
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.class_registry import ClassRegistry
from fednc.common.tasks.stages import Stage, stage_at, stages_of

Batch = Any  # what a task's own data yields; opaque to everybody else
Stats = dict[str, Tensor]  # additive sums and counts, float64 or int64: stats of a union = sum of the stats


class TaskOptions(BaseModel):
    """The keys of `[task]` besides `name`: each task derives its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Suggestion:
    """Keys of `[task]` that fit some data, what people must know of it, and whether mean and std were measured."""

    options: dict[str, Any]
    notes: tuple[str, ...] = ()
    measured: bool = False


@dataclass(frozen=True)
class Part:
    """Part `index` of `of` of a simulated split."""

    index: int
    of: int


class TaskData(ABC):
    """The examples of one client (or of the server's test), loaded once and resident for the run."""

    @property
    @abstractmethod
    def examples(self) -> int:
        """Number of examples."""

    @property
    @abstractmethod
    def count_K(self) -> Tensor:
        """int64 [K]: examples of each class of the label space."""

    @property
    def names(self) -> tuple[str, ...]:
        """Where each example came from, for people; may be empty."""
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was read and what was left out and why, a sentence each; may be empty."""
        return ()

    @abstractmethod
    def train_batches(self, batch: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch in an order drawn from `generator`, augmented if the task augments; batches on the device."""

    @abstractmethod
    def eval_batches(self, batch: int) -> Iterator[Batch]:
        """All examples in stored order, never augmented."""

    @abstractmethod
    def hold_out(self, share: float, seed: int) -> tuple[TaskData, TaskData]:
        """(training rest, held-out share), disjoint; the same for the same seed."""

    @abstractmethod
    def to(self, device: torch.device) -> TaskData:
        """The same examples on `device`."""

    def of_classes(self, first: int, end: int) -> TaskData:
        """The examples of classes `first` to `end` - 1, in stored order; for tasks that take sessions."""
        raise NotImplementedError(f"{type(self).__name__} cannot choose among classes ({first} to {end})")

    def few(self, shots: int, seed: int) -> TaskData:
        """At most `shots` examples of each class, drawn by `seed`; for tasks that take sessions."""
        raise NotImplementedError(f"{type(self).__name__} cannot draw {shots} examples of each class ({seed})")


class Task(ABC):
    """One workload. Stateless but for its options; models and data are passed in."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    takes_sessions: ClassVar[bool] = False  # classes may come later, in [[sessions]]
    Options: ClassVar[type[TaskOptions]]
    Split: ClassVar[type[SplitSection]] = SplitSection  # of [split]; a class that derives from it adds tables

    def __init__(self, run: RunConfig) -> None:
        """Checks `[task]` of the run file.

        Raises:
            ConfigError: a key or value of `[task]` is not allowed.
        """
        self.run = run
        values = {k: v for k, v in run.task.model_dump().items() if k != "name"}
        try:
            self.options = self.Options.model_validate(values)
        except ValidationError as e:
            raise ConfigError(explain(e, "run file", prefix="task")) from e
        if run.sessions and not self.takes_sessions:
            raise ConfigError(
                f"task.name: {self.name!r} learns all of its classes at once. Leave out [[sessions]], or name "
                "a task that takes them (docs/config.md)."
            )
        if (run.method.virtual_share or run.method.spread) and not self.takes_sessions:
            raise ConfigError(
                f"method.virtual_share and spread are for tasks that take [[sessions]], {self.name!r} does not: "
                "set both to 0"
            )

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, those of all [[sessions]] included; class i has vertex i of the frame."""

    @property
    def label_space(self) -> int:
        """K: vertices of the frame, reserved ones included."""
        return self.run.frame.vertices or len(self.class_names)

    # ---- classes that come later ---------------------------------------------------------------------------

    @property
    def registry(self) -> ClassRegistry:
        """Which class has which vertex, by session. Raises ConfigError: a clash, or no room."""
        later = [session.classes for session in self.run.sessions]
        own = len(self.class_names) - sum(map(len, later))
        return ClassRegistry((self.class_names[:own], *later), self.label_space)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What the run consists of; one stage without [[sessions]]."""
        return stages_of(self.run, self.registry.groups)

    def stage(self, server_round: int) -> Stage:
        """The stage of a round."""
        return stage_at(self.stages, server_round)

    def within_stage(self, guide: Guide, server_round: int) -> Guide:
        """`guide` with what a round's stage says of classes; as it is for a task that takes no sessions."""
        if not self.takes_sessions:
            return guide
        stage = self.stage(server_round)
        return replace(guide, classes=stage.classes, earlier=stage.earlier)

    def trained_keys(self, model: nn.Module, stage: Stage) -> list[str]:
        """The shared keys that a stage trains and that travel up, in order; the others stay as they are, for ever.

        So every stage's are among those of the stage before.
        """
        del stage
        return self.shared_keys(model)

    @property
    def memory_dim(self) -> int:
        """Width of what `embed` gives, and so of the class memory."""
        return self.run.frame.dim

    @property
    def min_sum_examples(self) -> int:
        """A client keeps a class's sum of features to itself when it is over fewer of its examples."""
        return 1

    def aligned(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(unit features [B, D] in the frame's space, labels [B]): what is compared with the vertices."""
        return self.embed(model, batch)

    def memory_cosines(self, model: nn.Module, guide: Guide) -> dict[str, float]:
        """Cosine of each class's memory, in the frame's space, to its vertex, by class name; {} where untold."""
        del model, guide
        return {}

    def fits_centrally(self, stage: Stage) -> bool:
        """Whether the server alone trains in this stage, by `fit`; clients are not asked."""
        del stage
        return False

    @property
    def settling_steps(self) -> int:
        """Epochs of `fit` by which the server settles the model on the memory that ends the beginning; 0: none."""
        return 0

    def fit(self, model: nn.Module, guide: Guide, section: TrainSection, generator: torch.Generator) -> float:
        """Train on the class memory alone, in place; the mean loss. For tasks that fit centrally."""
        raise NotImplementedError(f"{type(self).__name__} does not fit centrally")

    @classmethod
    @abstractmethod
    def suggest_options(cls, spec: str) -> Suggestion:
        """Keys of `[task]` that fit the training data at `spec`, for `fednc init`. Raises DataError."""

    @abstractmethod
    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> TaskData:
        """The training examples at data spec `spec`, or one part of them.

        Raises:
            DataError: missing, unreadable, or not of this run's classes and shapes.
        """

    @abstractmethod
    def load_test(self, spec: str) -> TaskData:
        """The test examples at `spec` (all of them, for data without a test part). Raises DataError."""

    @abstractmethod
    def load_input(self, spec: str) -> TaskData:
        """Unlabelled or labelled examples for `fednc predict`. Raises DataError."""

    @abstractmethod
    def pack(self, train: TaskData, test: TaskData) -> dict[str, np.ndarray[Any, Any]]:
        """Arrays of which an .npz file makes the same two sets again, as data spec `npz:PATH`."""

    @abstractmethod
    def make_split(self, spec: str, split: SplitSection) -> str:
        """Make the simulated split of the training data at `spec` and remember it here; its digest (hex)."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A new model, initialised from torch's global generator."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar to minimise, its named parts)."""

    def same_for_each_batch(self, guide: Guide) -> bool:
        """Whether `loss` does the same to every batch of one shape: then a GPU may replay it
        (`client/training/cuda_graphs.py`).

        It must not wait for the device, nor draw or decide anything on the CPU, and batches are tuples of tensors.
        """
        del guide
        return False

    @abstractmethod
    def embed(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(unit features [B, D], labels [B]) for the class memory; no gradients needed."""

    @abstractmethod
    def inputs_of(self, batch: Batch) -> Tensor:
        """Preprocessed inputs [B, ...] of a batch."""

    @abstractmethod
    def scores(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """Read-out scores [B, K], -inf beyond today's classes: argmax predicts, softmax is the confidence."""

    @abstractmethod
    def statistics(self, model: nn.Module, batch: Batch, guide: Guide) -> Stats:
        """Additive statistics of one batch; every value float64 or int64 on the CPU."""

    @abstractmethod
    def no_statistics(self) -> Stats:
        """The statistics of no example at all: every name with its type and shape, all zero."""

    def check_statistics(self, stats: Stats, announced: int) -> bool:
        """Whether there is an example in statistics of the right names, types and shapes that a client sent.

        Args:
            announced: examples that the client said it holds out.

        Raises:
            ProtocolError: no examples of that number have these statistics.
        """
        del stats
        return announced > 0

    @abstractmethod
    def metrics(self, stats: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics of summed statistics; must hold `accuracy`, `loss` and `examples`."""

    @abstractmethod
    def batch_size_of(self, batch: Batch) -> int:
        """Number of examples in a batch (for weights and throughput)."""

    def shared_keys(self, model: nn.Module) -> list[str]:
        """State-dict keys that travel; the others stay on the client."""
        return list(model.state_dict())

    def before_upload(self, model: nn.Module, global_state: Mapping[str, Tensor]) -> None:
        """Align symmetries of `model` with the global one before averaging; nothing by default."""
        del model, global_state

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """What a user of the exported model must do to raw inputs (JSON values)."""


def add_stats(total: Stats, new: Mapping[str, Tensor]) -> Stats:
    """`total` with `new` added, key by key, in place."""
    for key, value in new.items():
        total[key] = total[key] + value if key in total else value.clone()
    return total
