"""Scaffnew: control variates that each client derives from the models it is sent anyway, so they cost no bytes."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fednc.common.config.tables import LATER, Section, Share
from fednc.common.methods.api import PLAIN, Addition, LocalRound, Method, Tensors
from fednc.common.methods.fednova import effective_steps

OWN_CONTROL = "own-control"  # kind of the client's state
SHIFT, END = "shift/", "end/"  # key prefixes of the tensors in it
ROUND, LENGTH = "round", "length"


class Scaffnew(Method):
    """Control variates without bytes, from the mean model (Mishchenko et al., ICML 2022, arXiv 2202.09357).

    A client only corrects its gradients in a round that follows one in which it took part: then it knows its own
    model and the mean of all. The corrections of all clients add up to zero as long as that mean is plain.
    """

    class Options(Section):
        """Keys of scaffnew."""

        own_control: Annotated[Share, LATER] = Field(
            0.0,
            description="share of the difference between the client's own change of the last round and the mean "
            "change that is taken out of its gradients (Scaffnew); no bytes, but all clients must take part in "
            "every round",
        )

    name = "scaffnew"
    preset = PLAIN | {"own_control": 1.0}
    mixes = same_for_each_batch = True
    acts_on_gradients = needs_sgd = needs_plain_mean = True
    options: Options

    @property
    def is_on(self) -> bool:
        """See Method."""
        return self.options.own_control > 0

    def local(self, start: LocalRound) -> Addition:
        """See Method."""
        return OwnControl(start, self.options.own_control)


class OwnControl(Addition):
    """Each gradient g becomes g - h, where h is the client's mean gradient minus that of all clients.

    After a round that took the client from w to w_k while the mean moved to w', h <- share (h + (w' - w_k) / l).
    The length l of the round is that of a walk along a gradient of 1: learning rate times effective steps, which
    differ between clients. So with weights by examples the changes that the corrections make add up to zero.
    """

    def __init__(self, start: LocalRound, share: float) -> None:
        params = start.model.named_parameters()
        self._params = {name: p for name, p in params if name in start.stepped}
        self._start, self._share = start, share
        self._shift = self._shifts(start.state.read(OWN_CONTROL))
        device = next(start.model.parameters()).device
        self._steps = torch.zeros((), dtype=torch.int64, device=device)  # there, since steps may be replayed

    def _shifts(self, past: dict[str, Tensor]) -> dict[str, Tensor]:
        """h by parameter; zero unless the client took part in the round before."""
        if not past or int(past[ROUND]) != self._start.number - 1:
            return {name: torch.zeros_like(p) for name, p in self._params.items()}
        return {name: self._share * self._corrected(name, past) for name in self._params}

    def _corrected(self, name: str, past: dict[str, Tensor]) -> Tensor:
        mean = self._params[name].detach()
        behind = mean - past[END + name].to(mean.device)
        return past[SHIFT + name].to(mean.device) + behind / float(past[LENGTH])

    def on_gradients(self) -> None:
        """See Addition."""
        self._steps += 1
        for name, param in self._params.items():
            if param.grad is not None:
                param.grad -= self._shift[name]

    def finish(self) -> Tensors:
        """See Addition."""
        length = self._start.lr * effective_steps(int(self._steps), self._start.train)
        self._start.state.write(
            OWN_CONTROL,
            {
                ROUND: torch.tensor(self._start.number),
                LENGTH: torch.tensor(length, dtype=torch.float64),
                **{SHIFT + name: value for name, value in self._shift.items()},
                **{END + name: p.detach().clone() for name, p in self._params.items()},
            },
        )
        return {}


METHOD = Scaffnew
