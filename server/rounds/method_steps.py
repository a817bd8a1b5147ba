"""The server's side of a run's methods: tensors sent beside the model, tensors kept here, the step of each round.

Used by the global state. Knows no particular method: it calls the active ones in turn, and gives each its own
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
    """The active methods and the parameters that they may change.

    Attributes:
        methods: in the order of their steps.
        stepped: names of these parameters (`Task.stepped_keys`); all other tensors are only averaged.
    """

    methods: tuple[Method, ...] = ()
    stepped: frozenset[str] = frozenset()

    @property
    def needs_every_client(self) -> bool:
        """Whether clients that are not in a round must announce their examples too."""
        return any(method.needs_every_client for method in self.methods)

    def beside(self, params: Tensors) -> dict[str, Tensor]:
        """Initial values of the tensors sent beside these parameters."""
        return {key: value for method in self.methods for key, value in method.beside(params).items()}

    def kept(self, params: Tensors) -> dict[str, Tensor]:
        """Initial values of the tensors kept on the server, with names that start with their method's name."""
        return {
            f"{method.name}/{key}": value for method in self.methods for key, value in method.kept(params).items()
        }

    def step(self, reached: ServerRound) -> ServerRound:
        """The round after the steps of all methods.

        Raises:
            RunFailedError: a step returned tensors of other names, shapes or types.
            DivergedError: a step produced values that are not finite.
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
    """Raises RunFailedError for wrong tensors (a bug in the method), DivergedError for non-finite values."""
    for what in ("mean", "beside", "state"):
        wanted, found = _forms(getattr(before, what)), _forms(getattr(after, what))
        if wanted != found:
            odd = sorted(dict(wanted.items() ^ found.items()))
            raise RunFailedError(
                f"the server's step of {method.name} must return `{what}` with the names, shapes and types that "
                f"it was given; they differ in {odd[:3]}. Fix the method: see Method.step in common/methods/api.py"
            )
    if after.mean is not before.mean and not all(value.isfinite().all() for value in after.mean.values()):
        raise DivergedError(
            f"the server's step of {method.name} produced values that are not finite: lower its learning rate or "
            "train.lr. Kept: the model of the round before"
        )
