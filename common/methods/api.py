"""The contract of a method: a class that defines what it adds to federated averaging, on clients and server.

A method derives from `Method`; `registry.py` finds it by name. Client and server each create it from the run file
and call the hooks of their side. A hook may only use its arguments. docs/methods.md shows how to write one. Knows
no task, no link, and neither the client's nor the server's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from fednc.common.config.tables import Section, TrainSection

if TYPE_CHECKING:
    from fednc.common.learning.losses import Features

Tensors = Mapping[str, Tensor]

PLAIN: dict[str, Any] = {"head": "linear", "loss": "ce", "readout": "head"}  # presets start from one of these
FRAME: dict[str, Any] = {"head": "frame", "loss": "balanced-ce"}


class ClientState(Protocol):
    """What a client remembers between its rounds, by kind. Never sent."""

    def read(self, kind: str) -> dict[str, Tensor]:
        """The tensors that this client's previous round wrote; empty in its first. Do not change them in place."""

    def write(self, kind: str, tensors: Tensors) -> None:
        """Remember `tensors` for later rounds."""


@dataclass(frozen=True, kw_only=True)
class LocalRound:
    """The start of a client's round of training.

    Attributes:
        model: the model to train, as the server sent it.
        stepped: names of the parameters that steps at the server change.
        received: the tensors that the server sent with the model (`Method.beside`).
        state: what this client remembers.
        train: how the client trains.
        number: of the round in the run, from 1.
        lr: learning rate of the round, by the schedule.
    """

    model: nn.Module
    stepped: frozenset[str]
    received: Tensors
    state: ClientState
    train: TrainSection
    number: int
    lr: float


class Addition:
    """What a method adds to one round of local training. Every hook does nothing by default."""

    def companions(self) -> Mapping[str, nn.Module]:
        """Frozen models whose outputs for each batch `Method.feature_terms` needs."""
        return {}

    def penalties(self) -> Tensors:
        """Weighted terms on parameters, by name, to add to the loss of each step."""
        return {}

    def on_gradients(self) -> None:
        """Called when a step's gradients are computed, before clipping and the optimiser's step.

        It is called once per step of the optimiser: with `train.accumulate` several batches share one. See
        `Method.acts_on_gradients`.
        """

    def outgoing(self, trained: Tensors) -> Tensors:
        """The tensors to send instead of the trained ones, with the same names, shapes and types."""
        return trained

    def finish(self) -> Tensors:
        """Called after training: save state for the next round; return the changes to `received`."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ServerRound:
    """A round at the server, after the mean of the updates is computed. A step returns a copy with its changes.

    The tensors are float32, by the names of the parameters that this stage trains. Buffers, such as running
    statistics, and parameters of other types are averaged and not passed to steps. Nothing may be changed in
    place.

    Attributes:
        before: the parameters that the clients started from.
        mean: the weighted mean of their updates, or a robust mean (`rounds.robust`); the next parameters.
        beside: the tensors sent with the model, as the clients received them.
        news: the mean of the clients' changes to `beside`.
        state: what this method keeps on the server; part of checkpoints, and never sent.
        share: the share of all clients' examples that is in the mean.
        examples: number of examples that each client in the mean counts for, in ascending order.
        train: how the clients trained.
    """

    before: Tensors
    mean: Tensors
    beside: Tensors
    news: Tensors
    state: Tensors
    share: float
    examples: tuple[int, ...]
    train: TrainSection


class NoOptions(Section):
    """A method without keys of its own."""


class Method:
    """A learning method. `docs/methods.md` shows the first line of its docstring.

    Attributes:
        name: its value of `method.name`.
        version: raise it if the same run file would train differently than before.
        preset: defaults that the name sets in `[method]`: keys that all methods share, and keys of methods with
            `mixes`.
        Options: its own keys in `[method]`. Mark those that only the server reads with `SERVER_ONLY`.
        mixes: its keys may be set with any method and do nothing at their defaults; see `is_on`.
        compares_models: `feature_terms` needs the companions' outputs for each batch.
        needs_every_client: `ServerRound.share` needs the number of examples of clients outside the round, so all
            clients are asked.
        acts_on_gradients: its `Addition` has an `on_gradients`, which works on the gradients of the whole model.
            Tasks with several optimisers, which step one after the other, are refused.
        needs_sgd: it corrects gradients in a way that only SGD, with or without momentum, turns into the right
            step. Runs with another `train.optimizer` are refused.
        needs_plain_mean: its clients take the next model for the mean of their own ones. Runs with `rounds.robust`
            or with a step at the server are refused.
        same_for_each_batch: its part of a training step runs the same operations for every batch, never waits for
            the device and draws nothing on the CPU, so that a GPU may replay it.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    preset: ClassVar[Mapping[str, Any]] = {}
    Options: ClassVar[type[Section]] = NoOptions
    mixes: ClassVar[bool] = False
    compares_models: ClassVar[bool] = False
    needs_every_client: ClassVar[bool] = False
    acts_on_gradients: ClassVar[bool] = False
    needs_sgd: ClassVar[bool] = False
    needs_plain_mean: ClassVar[bool] = False
    same_for_each_batch: ClassVar[bool] = False

    options: Section

    def __init__(self, options: Section) -> None:
        """`options` is an instance of `Options` with the method's own keys, checked."""
        self.options = options

    @property
    def is_on(self) -> bool:
        """Whether the keys of a method that `mixes` switch it on."""
        return True

    @property
    def needs_classes(self) -> bool:
        """Whether it has loss terms on class features, which only tasks with classes have."""
        return type(self).feature_terms is not Method.feature_terms

    @property
    def acts_in_training(self) -> bool:
        """Whether it does anything besides setting keys that all methods share."""
        hooks = ("local", "feature_terms", "beside", "kept", "step")
        return any(getattr(type(self), hook) is not getattr(Method, hook) for hook in hooks)

    @property
    def pull(self) -> float:
        """Strength of its pull of all parameters towards the round's start; client policies limit it."""
        return 0.0

    # ---- the client's side ---------------------------------------------------------------------------------

    def local(self, start: LocalRound) -> Addition | None:
        """What it adds to one round of local training; None if nothing."""
        del start
        return None

    def feature_terms(self, features: Features) -> Tensors:
        """Weighted terms of the loss of one batch, by name; for tasks with class features."""
        del features
        return {}

    # ---- the server's side ---------------------------------------------------------------------------------

    def beside(self, params: Tensors) -> dict[str, Tensor]:
        """Initial tensors to send with these parameters. The server sends them, and clients send back changes.

        Names must be unique among all methods, so start them with a prefix of your own.
        """
        del params
        return {}

    def kept(self, params: Tensors) -> dict[str, Tensor]:
        """`ServerRound.state` before round 1, for a model with these parameters."""
        del params
        return {}

    def step(self, reached: ServerRound) -> ServerRound:
        """The round with new parameters, `beside` and state, from which the next round starts."""
        return reached


class ServerStep(Method):
    """A method that only has a step at the server; clients train as for fedavg.

    It also works with every other method, as `method.server_step`. Only the server reads its keys.
    """

    preset = PLAIN
    same_for_each_batch: ClassVar[bool] = True
