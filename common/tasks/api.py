"""The contract of a task: everything that the server, the strategy and the link know about a workload.

A task is a folder under `tasks/` with a class that derives from `Task`, or from `ClassifierTask` if it has
classes. `fednc.common.tasks.discovery.get` finds it by name. Nothing outside that folder may depend on which task
runs. docs/tasks.md says how to write one.

Legend: B batch, K label space.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from fednc.common.config.run import RunConfig, explain
from fednc.common.config.tables import InitSection, SplitSection, TaskSection, TrainSection
from fednc.common.errors import ConfigError, DataError
from fednc.common.learning.class_memory import ClassSums
from fednc.common.learning.frame import Frame
from fednc.common.learning.optimisers import SGD, check_optimiser
from fednc.common.learning.round_context import Guide
from fednc.common.methods.api import Method
from fednc.common.tasks import adapters, blocks, initial_weights
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.class_registry import ClassRegistry
from fednc.common.tasks.data_column import DataColumn
from fednc.common.tasks.graph_input import GraphInput, preprocessed_input
from fednc.common.tasks.metric_info import MetricInfo
from fednc.common.tasks.metrics import EXAMPLES, Metric, Stats, refuse_unless
from fednc.common.tasks.request_forms import RequestForm, preprocessed
from fednc.common.tasks.stages import Stage, stage_at, stages_of

Batch = Any  # what the task's data yields; opaque to all other code
Purpose = Literal["train", "test", "input"]  # what examples are read for


class TaskOptions(BaseModel):
    """The keys of `[task]` besides `name`. Each task derives its own class."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Suggestion:
    """Keys of `[task]` that fit some data, notes for the user, and whether mean and std were measured.

    Attributes:
        tables: further tables of the run file that suit the data, by name, e.g. `train`.
    """

    options: dict[str, Any]
    notes: tuple[str, ...] = ()
    measured: bool = False
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One part of a simulated split: number `index` of `of` parts."""

    index: int
    of: int


class TaskData(ABC):
    """The examples of one client, or the server's test data. Loaded once and kept in memory for the run."""

    @property
    @abstractmethod
    def examples(self) -> int:
        """Number of examples."""

    @property
    def count_K(self) -> Tensor:
        """int64 [K]: members of each class of the label space; shape [0] for a task without classes.

        Members are what sums of features are made of: examples, or parts of them (`Task.members_per_example`).
        """
        return torch.zeros(0, dtype=torch.int64)

    @property
    def having_K(self) -> Tensor:
        """int64 [K]: examples that have at least one member of each class.

        A class that fewer than `min_sum_examples` examples have is left out of sums of features. It differs from
        `count_K` only where one example has many members of classes, as a picture has pixels.
        """
        return self.count_K

    @property
    def counts(self) -> Mapping[str, Tensor]:
        """What `fednc check` shows of each class, int64 [K] by title: by default the number of examples."""
        return {"examples": self.count_K}

    @property
    def names(self) -> tuple[str, ...]:
        """Where each example came from, to show to users; may be empty."""
        return ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was read, and what was left out and why, one sentence each; may be empty."""
        return ()

    @property
    def column_report(self) -> tuple[Mapping[str, object], ...]:
        """For data with named columns: what was found in each, as rows of the table that `fednc check` shows."""
        return ()

    # What the owner's data manifest says (`data_manifest.py`); the defaults suit data that is rows of tensors.

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """The examples as tensors [N, ...], as they were read; () if they are kept in another form."""
        return ()

    @property
    def columns(self) -> tuple[DataColumn, ...]:
        """What each example consists of. Override it where columns have names of their own."""
        return tuple(
            DataColumn(name=str(i), dtype=str(rows.dtype).removeprefix("torch."), shape=tuple(rows.shape[1:]))
            for i, rows in enumerate(self.rows)
        )

    @property
    def label_map(self) -> Mapping[str, str]:
        """The data's own labels and the class that each stands for; {} if the data names its classes."""
        return {}

    @abstractmethod
    def train_batches(self, batch: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch in an order drawn from `generator`, augmented if the task augments; batches on the device."""

    @abstractmethod
    def eval_batches(self, batch: int) -> Iterator[Batch]:
        """All examples in stored order, never augmented."""

    def display_batches(self, batch: int) -> Iterator[Batch]:
        """As `eval_batches`, in the form in which people see the examples; the default is the same form."""
        return self.eval_batches(batch)

    @abstractmethod
    def hold_out(self, share: float, seed: int) -> tuple[TaskData, TaskData]:
        """(training data, held-out data): disjoint, and the same for the same seed."""

    @abstractmethod
    def to(self, device: torch.device) -> TaskData:
        """The same examples on `device`."""

    def of_classes(self, first: int, end: int) -> TaskData:
        """The examples of classes `first` to `end` - 1, in stored order. For tasks that support sessions."""
        raise NotImplementedError(f"{type(self).__name__} cannot choose among classes ({first} to {end})")

    def few(self, shots: int, seed: int) -> TaskData:
        """At most `shots` examples of each class, drawn with `seed`. For tasks that support sessions."""
        raise NotImplementedError(f"{type(self).__name__} cannot draw {shots} examples of each class ({seed})")


class Stepper(Protocol):
    """The trainer, as `Task.training_step` sees it."""

    def loss(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """(the task's loss plus the method's terms, in the run's precision; its parts by name)."""

    def descend(self, loss: Tensor, part: str = "") -> None:
        """Take one step of the part's optimiser on this loss, with clipping and the method's gradient changes."""


class Task(ABC):
    """One workload: a model, data, a loss, and metrics. Knows no classes.

    Has no state besides its options; models and data are passed in. A task with classes derives from
    `ClassifierTask` (`classifier.py`), and also from `Incremental` (`incremental.py`) if its classes come in
    sessions.

    Attributes:
        metrics: its metrics; the first is the primary one, unless `evaluate.metric` names another.
        sources: kinds of data specs for which `fednc init KIND` asks this task; others need `--task NAME`.
        scores_classes: the results of `outputs` and `predict` are scores of classes, so that they have
            confidences.
        body: prefix of the keys of the part of the model that may come with weights of its own; adapters are added
            to its layers. Names in `task.freeze` and `task.adapt` are looked up there first.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    body: ClassVar[str] = ""
    scores_classes: ClassVar[bool] = True
    takes_sessions: ClassVar[bool] = False  # classes may come later, in [[sessions]]
    sources: ClassVar[tuple[str, ...]] = ()
    Options: ClassVar[type[TaskOptions]]
    metrics: ClassVar[tuple[Metric | type[Metric], ...]]
    Split: ClassVar[type[SplitSection]] = SplitSection  # model of [split]; derive from it to add tables
    # Further test metrics that summary.json and comparisons show, beside the primary one.
    summary_metrics: ClassVar[tuple[str, ...]] = ()
    examples_each_round: ClassVar[bool] = False  # `examples` after every evaluation, not only at the end

    def __init__(self, run: RunConfig) -> None:
        """Check `[task]` of the run file.

        Raises:
            ConfigError: a key or value of `[task]` is not allowed.
        """
        self.run = run
        values = {k: v for k, v in run.chosen_task.items() if k not in TaskSection.model_fields}
        try:
            self.options = self.Options.model_validate(values)
        except ValidationError as e:
            raise ConfigError(explain(e, "run file", prefix="task", known=self.Options.model_fields)) from e
        self.measured_by = tuple(one() if isinstance(one, type) else one for one in self.metrics)
        if run.sessions and not self.takes_sessions:
            raise ConfigError(
                f"task.name: {self.name!r} learns all of its classes at once. Leave out [[sessions]], or choose "
                "a task that supports them (docs/config.md)."
            )
        if (run.method.virtual_share or run.method.spread) and not self.takes_sessions:
            raise ConfigError(
                f"method.virtual_share and spread are for tasks that support [[sessions]], but {self.name!r} does "
                "not: set both to 0"
            )
        self._check_primary()
        self._check_method()
        self._check_start()
        check_optimiser(run.train)
        self._check_steps()

    @classmethod
    def for_run(cls, run: RunConfig) -> Task:
        """The task of a run. A name whose runs may have classes or not returns the class that fits its keys."""
        return cls(run)

    def _check_steps(self) -> None:
        """Raises ConfigError: a method at work cannot use the run's optimiser, or the task's several."""
        has_own_parts = type(self).optimiser_parts is not Task.optimiser_parts
        train = self.run.train if has_own_parts else self.optimiser_section("", self.run.train)
        for part in self.run.method.parts:
            if part.acts_on_gradients and has_own_parts:
                raise ConfigError(
                    f"method {part.name!r} works on the gradients of the whole model at once, and task "
                    f"{self.name!r} has several optimisers. Use fedavg, fedprox or feddyn."
                )
            if part.needs_sgd and train.optimizer != SGD:
                raise ConfigError(
                    f"method {part.name!r} corrects the steps of {SGD}, and {train.optimizer!r} scales each of "
                    f"them in its own way. Set train.optimizer to {SGD!r}, or use fedavg, fedprox, feddyn or "
                    "fednova."
                )
            if part.needs_plain_mean:
                self._check_plain_mean(part)

    def _check_plain_mean(self, part: Method) -> None:
        """Raises ConfigError: the next model would not be the mean of the clients' own ones."""
        others = [one for one in self.run.method.parts if one is not part and type(one).step is not Method.step]
        if others or self.run.rounds.robust != "none":
            what = f"method {others[0].name!r}" if others else f"rounds.robust = {self.run.rounds.robust!r}"
            raise ConfigError(
                f"method {part.name!r} needs the plain mean of the clients' models as the next model, and {what} "
                "does more than that: leave one of them out"
            )

    def _check_start(self) -> None:
        """Raises ConfigError: settings that need other initial weights, or no class sessions."""
        run, start = self.run, self.run.task
        if (start.weights or start.adapter_rank) and (run.init != InitSection()):
            raise ConfigError(
                "[init] changes drawn weights, but task.weights or task.adapter_rank start from given ones: leave "
                "out [init]"
            )
        if start.adapt and not start.adapter_rank:
            raise ConfigError("task.adapt names blocks for adapters: set task.adapter_rank to 1 or more")
        if self.takes_sessions and (not run.train.epochs or run.method.readout_needs.needs_ridge):
            raise ConfigError(
                f"task {self.name!r} has later class sessions, in which only class means are pooled: set "
                "train.epochs to 1 or more, and method.readout to anything but 'ridge'"
            )

    def _check_method(self) -> None:
        """Raises ConfigError if the method needs classes."""
        method = self.run.method
        if method.needs_classes:
            raise ConfigError(
                f"method.name: {method.name!r} needs classes, and task {self.name!r} has none. "
                "Set method.name to fedavg, fedprox or scaffold."
            )

    @property
    def primary(self) -> MetricInfo:
        """The metric that history, status and reports show: `evaluate.metric`, or the first."""
        wanted = self.run.evaluate.metric
        found = {metric.name: metric for metric in self.measured_by}
        return (found[wanted] if wanted else self.measured_by[0]).info

    def _check_primary(self) -> None:
        """Raises ConfigError: `evaluate.metric` is no metric of this task."""
        names = [metric.name for metric in self.measured_by]
        if self.run.evaluate.metric not in ("", *names):
            raise ConfigError(
                f"evaluate.metric: {self.run.evaluate.metric!r} is not a metric of task {self.name!r}, which has "
                f"{', '.join(names)}"
            )

    # ---- classes and stages: the answers of a task without classes --------------------------------------------

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, including those of [[sessions]]; () for a task without classes."""
        return ()

    @property
    def label_space(self) -> int:
        """K: number of vertices of the frame, including reserved ones; 0 for a task without classes."""
        return 0

    @property
    def memory_dim(self) -> int:
        """Width of the class memory; 0 for a task without classes."""
        return 0

    @property
    def keeps_memory(self) -> bool:
        """Whether clients may be asked for class sums. A task with sessions may do without a class memory."""
        return True

    def no_class_sums(self, device: torch.device | None = None, *, moment: bool) -> ClassSums:
        """Class sums of no examples, in the form in which the run's clients send them."""
        return ClassSums.zeros(
            self.label_space,
            self.memory_dim,
            device,
            moment=moment,
            exact=not self.run.train.epochs,
            coarse=self.run.method.moment_codec == "int16",
        )

    @property
    def members_per_example(self) -> int:
        """The most members of classes that one example has: 1, or for a class per pixel a number of pixels.

        The server refuses counts of classes that add up to more than this times the examples.
        """
        return 1

    @property
    def min_sum_examples(self) -> int:
        """A client does not send sums over fewer examples than this."""
        return 1

    @property
    def min_data_sum_examples(self) -> int:
        """A client with fewer training examples sends no sums of its data before round 1."""
        return max(10, self.min_sum_examples)

    def frame(self, seed: int) -> Frame:
        """The frozen frame of the run; one without vertices for a task without classes. Raises ConfigError."""
        del seed
        return Frame.without_vertices(self.run.frame.dim)

    @property
    def registry(self) -> ClassRegistry:
        """Which class has which vertex, by session. Raises ConfigError if names clash or vertices run out."""
        later = [session.classes for session in self.run.sessions]
        own = len(self.class_names) - sum(map(len, later))
        return ClassRegistry((self.class_names[:own], *later), self.label_space)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run; without [[sessions]], one."""
        return stages_of(self.run, self.registry.groups)

    def stage(self, server_round: int) -> Stage:
        """The stage of a round."""
        return stage_at(self.stages, server_round)

    def within_stage(self, guide: Guide, server_round: int) -> Guide:
        """`guide` with the classes of the round's stage; unchanged for a task without sessions."""
        del server_round
        return guide

    # ---- data ------------------------------------------------------------------------------------------------

    @classmethod
    def suggest_options(cls, spec: str) -> Suggestion:
        """Keys of `[task]` that fit the training data at `spec`, for `fednc init`. Raises DataError."""
        del spec
        raise DataError(f"task {cls.name!r} cannot suggest options: write its keys under [task] by hand")

    @classmethod
    def suggest_with(cls, spec: str, wishes: Mapping[str, Any]) -> Suggestion:
        """As `suggest_options`, with what the user has decided: options of `fednc init`, by their names.

        Raises:
            ConfigError: the task cannot use one of them.
        """
        if wishes:
            raise ConfigError(
                f"--{next(iter(wishes)).replace('_', '-')} is not for task {cls.name!r}: leave it out"
            )
        return cls.suggest_options(spec)

    @abstractmethod
    def load_train(self, spec: str, part: Part | None, split: SplitSection | None) -> TaskData:
        """The training examples at data spec `spec`, or one part of them.

        They may depend on seed, [task], [[sessions]], [split] and [evaluate] of the run, and on nothing else in
        it: runs that follow one another and agree in these use the same loaded examples.

        Raises:
            DataError: they are missing, unreadable, or do not have this run's classes and shapes.
        """

    @abstractmethod
    def load_test(self, spec: str) -> TaskData:
        """The test examples at `spec`; all examples if the data has no test part. Raises DataError."""

    def load_input(self, spec: str) -> TaskData:
        """Examples for `fednc predict`, with or without labels. Raises DataError."""
        return self.load_test(spec)

    def pack(self, train: TaskData, test: TaskData) -> dict[str, np.ndarray[Any, Any]]:
        """Both sets as arrays for an .npz file, from which data spec `packed_spec` reads the same sets.

        `fednc compare` needs it: tuning trains on other parts of the data than a client reads. It joins the arrays
        of several clients: those with `train` or `test` as a part of their name have one row for each example.
        """
        del train, test
        raise DataError(
            f"task {self.name!r} cannot be compared, because it has no `pack`. Derive it from TensorTask "
            "(fednc.common.tasks.tensor_task), or write `pack` and let `load_train` and `load_test` read npz:PATH."
        )

    def packed_spec(self, path: Path) -> str:
        """The data spec with which this task reads a file of what its `pack` returned."""
        return f"npz:{path}"

    def make_split(self, spec: str, split: SplitSection) -> str:
        """Make the simulated split of the training data at `spec` and cache it here. Returns its digest (hex)."""
        del split
        raise DataError(
            f"task {self.name!r} cannot split {spec}: leave out [split] and give each client its own data"
        )

    def inputs_of(self, batch: Batch) -> Tensor:
        """Preprocessed inputs [B, ...] of a batch: by default its first tensor."""
        inputs: Tensor = batch[0]
        return inputs

    def batch_size_of(self, batch: Batch) -> int:
        """Number of examples in a batch (for weights and throughput)."""
        return len(self.inputs_of(batch))

    def preprocessing(self) -> dict[str, Any]:
        """How a user of the exported model must prepare raw inputs (JSON values)."""
        return {}

    def request_forms(self) -> tuple[RequestForm, ...]:
        """The forms in which `fednc serve` takes examples; by default, only preprocessed inputs."""
        return (preprocessed(),)

    def graph_input(self) -> GraphInput:
        """The input of an exported graph, and how it becomes the model's; by default a preprocessed input."""
        return preprocessed_input()

    # ---- sums of the data before round 1 -----------------------------------------------------------------------

    def no_data_sums(self) -> Stats:
        """The sums over no examples: every name with its shape, float64 or int64, all zero. {}: asks for none.

        An int64 sum is a count, at most 2^40 at one client; larger sums are float64.
        """
        return {}

    def data_sums(self, data: TaskData, least: int) -> Stats:
        """Additive sums of a client's training examples, on the CPU, with the form of `no_data_sums`.

        Args:
            data: the client's training examples, `least` at least.
            least: a value made of fewer examples must not leave the client. If too few examples have a value in
                some column, leave the sums and the count of that column at zero.
        """
        raise NotImplementedError(f"{type(self).__name__} declares sums of data and must compute them")

    def check_data_sums(self, sums: Stats, announced: int) -> None:
        """Check sums of the right names, shapes and types, finite, that a client sent.

        Args:
            announced: training examples that the client said it holds.

        Raises:
            ProtocolError: that many examples cannot have these sums. `metrics.refuse_unless` raises it.
        """
        raise NotImplementedError(f"{type(self).__name__} declares sums of data and must check them")

    def with_data_sums(self, model: nn.Module, sums: Stats) -> None:
        """Write what follows from the sums over all clients into `model`, in place: keys that are FIXED.

        Called once, on the server. A sum is zero if no client has such data or all withhold it.
        """
        raise NotImplementedError(f"{type(self).__name__} declares sums of data and must use them")

    # ---- training --------------------------------------------------------------------------------------------

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A new model, initialised from torch's global generator."""

    def new_model(self) -> nn.Module:
        """`build_model`, with the adapters that the run file asks for. Everything that trains or sends uses this.

        Raises:
            ConfigError: `task.freeze` or `task.adapt` names a block that the model does not have.
        """
        model, start = self.build_model(), self.run.task
        blocks.prefixes(model, self.body, start.freeze, "task.freeze")
        if start.adapter_rank:
            places = blocks.prefixes(model, self.body, start.adapt, "task.adapt") or (self.body,)
            adapters.add(model, start.adapter_rank, places)
        return model

    def load_weights(self, model: nn.Module, given: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Copy the tensors of `task.weights` into `model`, in place; returns notes for the user.

        Called once, on the server, before round 1. The default matches names with the model's body or with the
        whole model, see `initial_weights.py`.

        Raises:
            ConfigError: names or shapes do not fit.
        """
        return initial_weights.put(model, self.body, given)

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar to minimise, its parts by name)."""

    def training_step(self, model: nn.Module, batch: Batch, guide: Guide, trainer: Stepper) -> dict[str, Tensor]:
        """Train on one batch. Returns its losses by name, including `loss`.

        The default is one forward pass, one backward pass and one step. A task with several optimisers names them
        in `optimiser_parts` and calls `trainer.descend` once per loss.
        """
        loss, parts = trainer.loss(model, batch, guide)
        trainer.descend(loss)
        return {"loss": loss.detach(), **parts}

    def optimiser_parts(self, model: nn.Module) -> Mapping[str, Sequence[nn.Parameter]]:
        """Parameters by the name of their optimiser; by default one optimiser, called "", has all of them."""
        return {"": list(model.parameters())}

    def optimiser_section(self, part: str, section: TrainSection) -> TrainSection:
        """`[train]` for the optimiser of one part, which may have another rate or another optimiser."""
        del part
        return section

    def kept_optimisers(self) -> frozenset[str]:
        """Names of the optimiser parts whose state (momentum, moments) a client keeps from round to round.

        It stays on the client, as LOCAL keys do. By default none: every round starts with new optimisers, because
        the momentum of one client does not fit the mean of the models. Meant for parts that are LOCAL.
        """
        return frozenset()

    def same_for_each_batch(self, guide: Guide) -> bool:
        """Whether `loss` runs the same operations for every batch of one shape, so that a GPU may replay them
        (`client/training/cuda_graphs.py`).

        Then it must not wait for the device, nor draw or decide anything on the CPU, and batches must be tuples of
        tensors.
        """
        del guide
        return False

    # ---- what is sent and aggregated -------------------------------------------------------------------------

    def aggregation(self, key: str) -> Aggregation:
        """How a key of the state dict is aggregated; the default is the weighted mean over all clients.

        Override this one; code outside a task asks `combining`.
        """
        del key
        return Aggregation.MEAN

    def combining(self, key: str) -> Aggregation:
        """`aggregation(key)`, or FIXED if the run file freezes the key."""
        return Aggregation.FIXED if self.is_frozen(key) else self.aggregation(key)

    def is_frozen(self, key: str) -> bool:
        """Whether the run file keeps a key of the state dict as it starts (`task.freeze`, `task.adapter_rank`)."""
        if self.run.task.adapter_rank and key.startswith(self.body) and not adapters.is_adapter(key):
            return True
        return key.startswith(self._frozen_prefixes)

    @cached_property
    def _frozen_prefixes(self) -> tuple[str, ...]:
        names = self.run.task.freeze
        if not names:
            return ()
        with torch.random.fork_rng(devices=[]):
            return blocks.prefixes(self.build_model(), self.body, names, "task.freeze")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of a task that different clients own, such as kinds of labels; () for most tasks."""
        return ()

    def holdings(self, data: TaskData) -> Mapping[str, int]:
        """With how many examples `data` trains each of `parts`.

        Every client announces its own, and `fednc status` shows who owns what.
        """
        return dict.fromkeys(self.parts, data.examples)

    def label_counts(self, data: TaskData) -> Mapping[str, Mapping[str, int]]:
        """What examples may have labels of beside classes: by kind (a plural), each name and the examples with it.

        `fednc check` with the data of all sites refuses a name of which none of them has labels.
        """
        return {"parts of the task": self.holdings(data)} if self.parts else {}

    def owned(self, data: TaskData) -> Mapping[str, int]:
        """For each `OWNERS` key that `data` trains: how many of its examples do."""
        raise NotImplementedError(f"{type(self).__name__} must say which keys {data.examples} examples train")

    def shared_keys(self, model: nn.Module) -> list[str]:
        """State-dict keys that are sent; the others stay on the client."""
        return [key for key in model.state_dict() if self.combining(key) != Aggregation.LOCAL]

    def trained_keys(self, model: nn.Module, stage: Stage) -> list[str]:
        """The shared keys that a stage trains and clients send back, in order. The others are frozen from then on.

        So each stage's keys are a subset of those of the stage before.
        """
        del stage
        return [key for key in self.shared_keys(model) if self.combining(key) != Aggregation.FIXED]

    def head_keys(self, model: nn.Module) -> frozenset[str]:
        """The keys of the layers behind the backbone, for `[personal]` with `train = "head"`.

        A task that names none is refused with that setting.
        """
        del model
        return frozenset()

    def stepped_keys(self, model: nn.Module) -> frozenset[str]:
        """The parameters that a method's step at the server may change: float32, and averaged over all clients.

        A parameter with two names appears under both.
        """
        params = model.named_parameters(remove_duplicate=False)
        averaged = {name for name, p in params if p.dtype is torch.float32}
        return frozenset(name for name in averaged if self.combining(name) == Aggregation.MEAN)

    def stretch(self, alike: float) -> float:
        """How far the server moves the tensors of `stepped_keys` in a round: a multiple of their mean change.

        Args:
            alike: how alike the clients of the round are by the `OWNERS` keys that they train, in (0, 1]: 1 if all
                train the same, 1/m for m groups of the same weight that train different ones.
        """
        del alike
        return 1.0

    def before_upload(self, model: nn.Module, global_state: Mapping[str, Tensor]) -> None:
        """Align symmetries of `model` with the global model before averaging; by default does nothing."""
        del model, global_state

    # ---- evaluation ------------------------------------------------------------------------------------------

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch, guide: Guide) -> tuple[Tensor, Tensor]:
        """For the metrics: (outputs of the model [B, ...], targets [B, ...]) of examples with a known target."""

    def inference_model(self, model: nn.Module) -> nn.Module:
        """The part of `model` that prediction needs, with the same keys; it is exported. By default all of it.

        `model` itself must not change.
        """
        return model

    @property
    def further_channels(self) -> int:
        """Channels behind the scores of the classes in what `predict` returns; by default there are none."""
        return 0

    def predict(self, model: nn.Module, inputs: Tensor, guide: Guide) -> Tensor:
        """Output of an exported model for preprocessed inputs [B, ...]."""
        del guide
        output: Tensor = model(inputs)
        return output

    def displayed(self, model: nn.Module, batch: Batch) -> Tensor:
        """What people see of the prediction of an exported model for a batch of `display_batches`."""
        output: Tensor = model(self.inputs_of(batch))
        return output

    def described(self, output: Tensor) -> list[dict[str, Any]]:
        """For `fednc predict`: JSON values by name for each example of a batch, from the result of `displayed`."""
        return [{"value": value} for value in output.tolist()]

    def prediction_files(self, batch: Batch, output: Tensor, names: Sequence[str]) -> Mapping[str, bytes]:
        """For `fednc predict --out`: files to show to users, by name, for a batch; by default none.

        Args:
            output: the result of `displayed` for the batch.
            names: where each of its examples came from; `fednc predict` gives each another `file_stem`.
        """
        del batch, output, names
        return {}

    def examples(self, model: nn.Module, data: TaskData, guide: Guide) -> Mapping[str, bytes]:
        """Files to show to users, by name, made from the server's own test data; by default none.

        `model` is the global model, in evaluation mode, on the device of `data`: that of the last round, or with
        `examples_each_round` of each round that is evaluated.
        """
        del model, data, guide
        return {}

    def statistics(self, model: nn.Module, batch: Batch, guide: Guide) -> Stats:
        """Additive statistics of one batch: the sums of all metrics; every value float64 or int64 on the CPU."""
        output, target = self.outputs(model, batch, guide)
        found = {EXAMPLES: torch.tensor(len(target))}
        for metric in self.measured_by:
            found |= metric.sums(output, target)
        return {name: value.cpu() for name, value in found.items()}

    def no_statistics(self) -> Stats:
        """The statistics of zero examples: every name with its type and shape, all zero."""
        found = {EXAMPLES: torch.tensor(0)}
        for metric in self.measured_by:
            found |= metric.zeros(self.label_space)
        return found

    def check_statistics(self, stats: Stats, announced: int) -> bool:
        """Check a client's statistics, whose names, types and shapes fit. Returns whether they have examples.

        Args:
            announced: number of examples that the client said it holds out.

        Raises:
            ProtocolError: no set of that many examples can have these statistics.
        """
        examples = int(stats[EXAMPLES])
        refuse_unless(0 <= examples <= announced, f"{examples} examples, {announced} were held out")
        for metric in self.measured_by:
            metric.check(stats, examples)
        return examples > 0

    def measure(self, stats: Mapping[str, Tensor]) -> dict[str, float]:
        """The metrics of summed statistics by name, `examples`, and further details of metrics.

        Without examples, `examples` is 0 and every metric is NaN.
        """
        examples = int(stats[EXAMPLES]) if stats else 0
        if not examples:
            return {**{metric.name: math.nan for metric in self.measured_by}, EXAMPLES: 0.0}
        found = {metric.name: metric.value(stats, examples) for metric in self.measured_by}
        found[EXAMPLES] = float(examples)
        for metric in self.measured_by:
            found |= metric.details(stats, examples, self.class_names)
        return found


def split_with(part: Part, split: SplitSection | None) -> SplitSection:
    """The run's split. Raises DataError: it has none, or another number of parts."""
    if split is None:
        raise DataError(
            f"part {part.index} of {part.of} was asked for, but the run file has no [split]: leave out "
            "--partition, all of the data is this client's."
        )
    if part.of != split.parts or not 0 <= part.index < part.of:
        raise DataError(
            f"part {part.index} of {part.of} does not exist: the run's split has parts 0 to {split.parts - 1} of "
            f"{split.parts} (split.parts)."
        )
    return split


def add_stats(total: Stats, new: Mapping[str, Tensor]) -> Stats:
    """Add `new` to `total` key by key, in place; returns `total`."""
    for key, value in new.items():
        total[key] = total[key] + value if key in total else value.clone()
    return total
