"""Frozen models that methods compare the trained model with.

Used by methods whose loss also needs another model's outputs for the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from fednc.common.learning.round_context import GLOBAL, PREVIOUS
from fednc.common.methods.api import Addition, LocalRound, Tensors


class GlobalModel(Addition):
    """The global model that the round started from."""

    def __init__(self, start: LocalRound) -> None:
        self._frozen = {GLOBAL: frozen(start.model)}

    def companions(self) -> Mapping[str, nn.Module]:
        """See Addition."""
        return self._frozen


class PreviousModel(GlobalModel):
    """The global model and, from a client's second round on, the model of its previous round."""

    def __init__(self, start: LocalRound) -> None:
        super().__init__(start)
        self._model, self._state = start.model, start.state
        previous = self._state.read(PREVIOUS)
        if previous:
            self._frozen[PREVIOUS] = frozen(start.model, previous)

    def finish(self) -> Tensors:
        """See Addition."""
        self._state.write(PREVIOUS, self._model.state_dict())
        return {}


def frozen(model: nn.Module, state: Tensors | None = None) -> nn.Module:
    """A copy in evaluation mode without gradients; with the weights of `state`, if given."""
    made = copy.deepcopy(model).requires_grad_(False).eval()
    if state is not None:
        made.load_state_dict(state)
    return made
