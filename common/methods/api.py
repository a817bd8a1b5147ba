"""What a method is: one class that says what it adds to federated averaging, on clients and at the server.

A method derives from `Method` and is found by name in `registry.py`. Client and server each make it from the run
file and call the hooks of their side; what a hook is given is all that it may use. docs/methods.md shows one of
your own. Knows no task, no link, and neither the client's nor the server's code.
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
    """What a client remembers from one of its rounds to the next, by kind. It never travels."""

    def read(self, kind: str) -> dict[str, Tensor]:
        """What this client's last earlier round wrote; empty before there is one. Not to be changed in place."""

    def write(self, kind: str, tensors: Tensors) -> None:
        """Remember `tensors` for later rounds."""


@dataclass(frozen=True, kw_only=True)
class LocalRound:
    """What a client's round of training starts from.

    Attributes:
        model: the model that will be trained, as the server sent it.
        stepped: names of the parameters that the server's steps act on.
        received: what the server sent beside the model (`Method.beside`).
        state: what this client remembers.
        train: how it trains.
    """

    model: nn.Module
    stepped: frozenset[str]
    received: Tensors
    state: ClientState
    train: TrainSection


class Addition:
    """What a method adds to one round of local training; every hook does nothing by default."""

    def companions(self) -> Mapping[str, nn.Module]:
        """Frozen models whose view of each batch `Method.feature_terms` needs."""
        return {}

    def penalties(self) -> Tensors:
        """Weighted terms on parameters, by name, that are added to the loss of each step."""
        return {}

    def on_gradients(self) -> None:
        """The gradients of a step are there; clipping and the optimiser's step come next.

        Once per step of the optimiser: with `train.accumulate` several batches share one. See
        `Method.acts_on_gradients`.
        """

    def outgoing(self, trained: Tensors) -> Tensors:
        """What is sent in place of the tensors that were trained: the same names, shapes and types."""
        return trained

    def finish(self) -> Tensors:
        """Training is over: remember what the next round needs; return the changes of what travels beside."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ServerRound:
    """A round at the server, once the mean of the updates is there. A step returns one with its changes.

    The tensors are float32, under the names of the parameters that this stage trains; buffers, such as running
    statistics, and parameters of other types are averaged and never shown to a step. Nothing may be changed in
    place.

    Attributes:
        before: the parameters that the clients started from.
        mean: the weighted mean of what they sent, robust where `rounds.robust` says so; the next parameters.
        beside: what travels beside the model, as the clients received it.
        news: the mean of the changes to it that the clients sent.
        state: what this method keeps on the server; checkpointed, and never sent.
        share: of all examples that all clients hold, those that are in the mean.
        examples: how many each client in the mean counts for, in ascending order.
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
    """No keys of its own."""


class Method:
    """A learning method. Its docstring's first line is what `docs/methods.md` says about it.

    Attributes:
        name: what `method.name` calls it.
        version: raise it when the same run file would train in another way than before.
        preset: what the name sets in `[method]` where the run file says nothing: keys that all methods share, and
            those of methods with `mixes`.
        Options: keys of its own in `[method]`. Mark those that only the server reads with `SERVER_ONLY`.
        mixes: its keys may be set under any method's name and do nothing at their defaults; see `is_on`.
        compares_models: `feature_terms` needs the companions' views of each batch.
        needs_every_client: `ServerRound.share` counts clients outside the round: all are asked what they hold.
        acts_on_gradients: its `Addition` has an `on_gradients`, which works on the whole model's gradients;
            tasks with several optimisers, which step one after the other, are refused.
        needs_sgd: it corrects gradients in a way that only SGD, with or without momentum, turns into the right
            step; runs with another `train.optimizer` are refused.
        same_for_each_batch: its part of a training step does the same to every batch, never waits for the device
            and draws nothing on the CPU, so that a GPU may replay it.
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
    same_for_each_batch: ClassVar[bool] = False

    options: Section

    def __init__(self, options: Section) -> None:
        """`options` is an instance of `Options`: the method's own keys, checked."""
        self.options = options

    @property
    def is_on(self) -> bool:
        """Whether the keys of a method that `mixes` switch it on."""
        return True

    @property
    def needs_classes(self) -> bool:
        """Whether it has terms on class features, which only tasks with classes train."""
        return type(self).feature_terms is not Method.feature_terms

    @property
    def pull(self) -> float:
        """Strength of its pull of all parameters towards the round's start; client policies bound it."""
        return 0.0

    # ---- the client's side ---------------------------------------------------------------------------------

    def local(self, start: LocalRound) -> Addition | None:
        """What it adds to one round of local training; None: nothing."""
        del start
        return None

    def feature_terms(self, features: Features) -> Tensors:
        """Weighted terms of the loss of one batch, by name, for tasks that train class features."""
        del features
        return {}

    # ---- the server's side ---------------------------------------------------------------------------------

    def beside(self, params: Tensors) -> dict[str, Tensor]:
        """What travels beside these parameters, as it is before round 1: the server's to all, changes to it back.

        Names are unique among all methods: start them with one of your own.
        """
        del params
        return {}

    def kept(self, params: Tensors) -> dict[str, Tensor]:
        """`ServerRound.state` before round 1, for a model with these parameters."""
        del params
        return {}

    def step(self, reached: ServerRound) -> ServerRound:
        """The round with the parameters, the tensors beside them and the state that the next one starts from."""
        return reached


class ServerStep(Method):
    """A method that is a step at the server and nothing else: clients train as for fedavg.

    Usable with every other method too, as `method.server_step`. All its keys are the server's.
    """

    preset = PLAIN
    same_for_each_batch: ClassVar[bool] = True
