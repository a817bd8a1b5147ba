"""What methods add to plain local training: a proximal pull, models to compare with, control variates.

Made by the app for one round (`additions`), called by the trainer at fixed points. A new method is a new class
here and one line in `additions`; the trainer knows none of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fednc.client.training.round_state import Past
from fednc.common.config.tables import MethodSection
from fednc.common.learning.losses import proximal
from fednc.common.learning.round_context import GLOBAL, PREVIOUS
from fednc.common.wire.messages import control_key

CONTROL = "control"  # in the client's past


class Addition:
    """One addition to a round of local training; every hook does nothing by default."""

    def companions(self) -> Mapping[str, nn.Module]:
        """Frozen models whose view of each batch the loss needs."""
        return {}

    def penalties(self) -> Mapping[str, Tensor]:
        """Weighted terms on parameters, added to the loss of each step."""
        return {}

    def on_gradients(self) -> None:
        """The gradients of a step are there; clipping and the step come next."""

    def finish(self) -> Mapping[str, Tensor]:
        """Training is over: remember what the next round needs; return what the server needs, by name."""
        return {}


class Proximal(Addition):
    """mu/2 |w - w_global|^2 (FedProx: Li et al., MLSys 2020, arXiv 1812.06127)."""

    def __init__(self, model: nn.Module, mu: float) -> None:
        self._params, self._mu = list(model.parameters()), mu
        self._start = [p.detach().clone() for p in self._params]

    def penalties(self) -> Mapping[str, Tensor]:
        return {"proximal": self._mu * proximal(self._params, self._start)}


class Comparison(Addition):
    """The global model and this client's own previous one, for the losses of FedNTD and MOON."""

    def __init__(self, model: nn.Module, past: Past) -> None:
        self._model, self._past = model, past
        self._frozen = {GLOBAL: _frozen(model)}
        previous = past.read(PREVIOUS)
        if previous:
            self._frozen[PREVIOUS] = _frozen(model, previous)

    def companions(self) -> Mapping[str, nn.Module]:
        return self._frozen

    def finish(self) -> Mapping[str, Tensor]:
        self._past.write(PREVIOUS, self._model.state_dict())
        return {}


class ControlVariates(Addition):
    """Each gradient g becomes g + c - c_k (SCAFFOLD: Karimireddy et al., ICML 2020, arXiv 1910.06378).

    c_k, the client's own control variate, becomes the mean of the plain g over the round's steps. For plain SGD
    that is exactly the paper's option II, c_k - c + (w_global - w) / (steps * lr); with momentum, whose steps are
    longer than lr g, only this form keeps the scale of a gradient. The server adds the weighted mean change to c,
    weighted as it weighs models, so that c stays the mean of all c_k.
    """

    def __init__(self, model: nn.Module, control: Mapping[str, Tensor], past: Past) -> None:
        self._params = {name: p for name, p in model.named_parameters() if control_key(name) in control}
        own = past.read(CONTROL)
        device = next(model.parameters()).device
        self._own = {n: own[n].to(device) if own else torch.zeros_like(p) for n, p in self._params.items()}
        self._shift = {n: control[control_key(n)].to(device) - self._own[n] for n in self._params}
        self._sum = {n: torch.zeros_like(p) for n, p in self._params.items()}
        self._steps = torch.zeros((), dtype=torch.int64, device=device)  # counted there: steps may be replayed
        self._past = past

    def on_gradients(self) -> None:
        self._steps += 1
        for name, param in self._params.items():
            if param.grad is None:
                param.grad = torch.zeros_like(param)
            self._sum[name] += param.grad
            param.grad += self._shift[name]

    def finish(self) -> Mapping[str, Tensor]:
        steps = int(self._steps)
        new = {name: total / steps for name, total in self._sum.items()}
        self._past.write(CONTROL, new)
        return {control_key(name): value - self._own[name] for name, value in new.items()}


def additions(method: MethodSection, model: nn.Module, extra: Mapping[str, Tensor], past: Past) -> list[Addition]:
    """What `method` adds to a round that starts from `model`.

    Args:
        extra: what the server sent beside model and guide.
        past: what this client remembers of its earlier rounds.
    """
    found: list[Addition] = []
    if method.proximal > 0:
        found.append(Proximal(model, method.proximal))
    if method.compares_models:
        found.append(Comparison(model, past))
    if method.control_variates:
        found.append(ControlVariates(model, extra, past))
    return found


def _frozen(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    frozen = copy.deepcopy(model).requires_grad_(False).eval()
    if state is not None:
        frozen.load_state_dict(state)
    return frozen
