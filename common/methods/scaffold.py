"""SCAFFOLD: corrects each gradient by the difference between the federation's gradients and the client's own."""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from fednc.common.config.tables import Section
from fednc.common.methods.api import PLAIN, Addition, LocalRound, Method, ServerRound, Tensors

CONTROL = "control"  # kind of the client's state


class Scaffold(Method):
    """Control variates against the drift of clients (Karimireddy et al., ICML 2020, arXiv 1910.06378)."""

    class Options(Section):
        """Keys of scaffold."""

        control_variates: bool = Field(
            False,
            description="correct each gradient by the difference between the federation's and the client's own "
            "mean gradient (SCAFFOLD); doubles the traffic",
        )

    name = "scaffold"
    preset = PLAIN | {"control_variates": True}
    mixes = needs_every_client = same_for_each_batch = True
    acts_on_gradients = needs_sgd = True
    options: Options

    @property
    def is_on(self) -> bool:
        """See Method."""
        return self.options.control_variates

    def local(self, start: LocalRound) -> Addition:
        """See Method."""
        return ControlVariates(start)

    def beside(self, params: Tensors) -> dict[str, Tensor]:
        """c, the federation's control variate: zeros like each parameter."""
        return {control_key(name): torch.zeros_like(p) for name, p in params.items()}

    def step(self, reached: ServerRound) -> ServerRound:
        """Add the mean change, weighted by examples, to c, so that c stays the mean of all clients' c_k."""
        moved = {key: c + reached.share * reached.news[key] for key, c in reached.beside.items()}
        return replace(reached, beside=moved)


class ControlVariates(Addition):
    """Each gradient g becomes g + c - c_k.

    c_k, the client's own control variate, becomes the mean of the uncorrected g over the round's steps. For plain
    SGD that is exactly the paper's option II, c_k - c + (w_global - w) / (steps * lr). With momentum, steps are
    longer than lr g, and only this form keeps the scale of a gradient.
    """

    def __init__(self, start: LocalRound) -> None:
        control, own = start.received, start.state.read(CONTROL)
        self._params = {name: p for name, p in start.model.named_parameters() if control_key(name) in control}
        device = next(start.model.parameters()).device
        self._own = {n: own[n].to(device) if own else torch.zeros_like(p) for n, p in self._params.items()}
        self._shift = {n: control[control_key(n)].to(device) - self._own[n] for n in self._params}
        self._sum = {n: torch.zeros_like(p) for n, p in self._params.items()}
        self._steps = torch.zeros(
            (), dtype=torch.int64, device=device
        )  # on the device, since steps may be replayed
        self._state = start.state

    def on_gradients(self) -> None:
        """See Addition."""
        self._steps += 1
        for name, param in self._params.items():
            if param.grad is None:
                param.grad = torch.zeros_like(param)
            self._sum[name] += param.grad
            param.grad += self._shift[name]

    def finish(self) -> Tensors:
        """See Addition."""
        steps = int(self._steps)
        new = {name: total / steps for name, total in self._sum.items()}
        self._state.write(CONTROL, new)
        return {control_key(name): value - self._own[name] for name, value in new.items()}


def control_key(name: str) -> str:
    """Key under which the control variate of parameter `name` is sent."""
    return f"control/{name}"


METHOD = Scaffold
