"""The server's side of a run's methods: what travels beside the model, what stays here, the step of each round.

Used by the global state. Knows no method: it asks those at work one after the other, and gives each its own
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fednc.common.errors import DivergedError, RunFailedError
from fednc.common.methods.api import Method, ServerRound

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class MethodSteps:
    """The methods at work and the parameters that they may step.

    Attributes:
        methods: in the order in which their steps are taken.
        stepped: names of these parameters (`Task.stepped_keys`); all else is averaged only.
    """

    methods: tuple[Method, ...] = ()
    stepped: frozenset[str] = frozenset()

    @property
    def needs_every_client(self) -> bool:
        """Whether clients that are not in a round must have said what they hold."""
        return any(method.needs_every_client for method in self.methods)

    def beside(self, params: Tensors) -> dict[str, Tensor]:
        """What travels beside these parameters, before round 1."""
        return {key: value for method in self.methods for key, value in method.beside(params).items()}

    def kept(self, params: Tensors) -> dict[str, Tensor]:
        """What stays at the server, before round 1; each name starts with that of its method."""
        return {
            f"{method.name}/{key}": value for method in self.methods for key, value in method.kept(params).items()
        }

    def step(self, reached: ServerRound) -> ServerRound:
        """The round after the steps of all methods. Its tensors are those of all of them.

        Raises:
            RunFailedError: a step returned other tensors than it may.
            DivergedError: a step left values that are not finite.
        """
        for method in self.methods:
            mine = method.beside(reached.before).keys()
            prefix = f"{method.name}/"
            state = {k.removeprefix(prefix): v for k, v in reached.state.items() if k.startswith(prefix)}
            given = replace(
                reached,
                beside={key: value for key, value in reached.beside.items() if key in mine},
                news={key: value for key, value in reached.news.items() if key in mine},
                state=state,
            )
            after = method.step(given)
            _check(method, after, given)
            reached = replace(
                reached,
                mean=after.mean,
                beside={**reached.beside, **after.beside},
                state={**reached.state, **{prefix + key: value for key, value in after.state.items()}},
            )
        return reached


def _forms(tensors: Tensors) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {key: (value.dtype, value.shape) for key, value in tensors.items()}


def _check(method: Method, after: ServerRound, before: ServerRound) -> None:
    """Raises RunFailedError: the method is at fault; DivergedError: values that no client could train from."""
    for what in ("mean", "beside", "state"):
        wanted, found = _forms(getattr(before, what)), _forms(getattr(after, what))
        if wanted != found:
            odd = sorted(dict(wanted.items() ^ found.items()))
            raise RunFailedError(
                f"the server's step of {method.name} must return `{what}` with the names, shapes and types that "
                f"it was given; they differ in {odd[:3]}. Mend the method: Method.step in common/methods/api.py"
            )
    if after.mean is not before.mean and not all(value.isfinite().all() for value in after.mean.values()):
        raise DivergedError(
            f"the server's step of {method.name} left values that are not finite: lower its learning rate or "
            "train.lr. Kept: the model of the round before"
        )
