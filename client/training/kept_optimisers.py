"""The state of optimisers that a client keeps from round to round (`Task.kept_optimisers`), as named tensors.

Called by the trainer; the app stores the tensors with the other state of the round. Must not know what a task
trains with them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fednc.common.errors import ConfigError


class KeptOptimisers:
    """Reads and writes the state of some of a round's optimisers.

    A tensor is called `part/parameter/slot`, for example `judge/layer.weight/exp_avg`.
    """

    def __init__(
        self, optimisers: Mapping[str, torch.optim.Optimizer], model: nn.Module, parts: Collection[str]
    ) -> None:
        """`parts`: the optimisers to keep. One whose parameters are all frozen has no state."""
        self._optimisers = {part: optimisers[part] for part in sorted(parts) if part in optimisers}
        self._names = {param: name for name, param in model.named_parameters()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned in an earlier round; does nothing if that is empty."""
        if not state:
            return
        for part, optimiser in self._optimisers.items():
            now = optimiser.state_dict()
            params = self._params(optimiser)
            slots = {place: self._slots(state, f"{part}/{name}/") for place, name in enumerate(params)}
            now["state"] = {place: found for place, found in slots.items() if found}
            optimiser.load_state_dict(now)

    def state(self) -> dict[str, Tensor]:
        """A copy of the state, on the CPU. Raises ConfigError: the optimiser keeps something but tensors."""
        found: dict[str, Tensor] = {}
        for part, optimiser in self._optimisers.items():
            slots: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
            for place, name in enumerate(self._params(optimiser)):
                for slot, value in slots.get(place, {}).items():
                    if value is not None:
                        found[f"{part}/{name}/{slot}"] = _copied(value, optimiser)
        return found

    def _params(self, optimiser: torch.optim.Optimizer) -> list[str]:
        """The names of its parameters, in its own order."""
        return [self._names[param] for group in optimiser.param_groups for param in group["params"]]

    @staticmethod
    def _slots(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value.clone() for key, value in state.items() if key.startswith(prefix)}


def _copied(value: Any, optimiser: torch.optim.Optimizer) -> Tensor:
    if not isinstance(value, Tensor):
        raise ConfigError(
            f"train.optimizer: the state of {type(optimiser).__name__} has values that are no tensors, so a "
            "client cannot keep it between rounds. Use 'adam', 'adamw' or 'sgd'."
        )
    return value.detach().cpu().clone()
