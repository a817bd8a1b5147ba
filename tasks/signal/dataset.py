"""The windows of one client, and how training batches are drawn from them and varied.

Built by the task; trainer and evaluation use it as `TaskData`. Must not know where windows come from.

Legend: N windows, B batch, T samples of a window, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from fednc.common.tasks.tensor_data import LabelledTensors, hold_out_last_index
from fednc.tasks.signal.options import SignalOptions


@dataclass(frozen=True, kw_only=True, eq=False)
class SignalData(LabelledTensors):
    """Windows float32 [N, T, C] with labels, in the order in which they were recorded.

    Attributes:
        options: how training windows are varied.
        deviation_C: of each channel over these windows; the unit of `jitter`.
    """

    options: SignalOptions
    deviation_C: Tensor

    def train_batches(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """One epoch in an order drawn from `generator`, varied as the run says. Evaluation batches never are."""
        for window_BTC, label_B in super().train_batches(batch, generator):
            yield self._varied(window_BTC, generator), label_B

    def hold_out(self, share: float, seed: int) -> tuple[Self, Self]:
        """(training data, held-out data): the last windows of each class, whatever the seed.

        Windows overlap, or follow each other closely, so a random draw would hold out what is trained on.
        """
        del seed
        rest, held = hold_out_last_index(self.label_N.cpu().numpy(), share)
        return self.select(rest), self.select(held)

    def to(self, device: torch.device) -> Self:
        """The same windows on `device`."""
        return replace(super().to(device), deviation_C=self.deviation_C.to(device))

    def _varied(self, window_BTC: Tensor, generator: torch.Generator) -> Tensor:
        """Random numbers are drawn on the CPU, so that they are the same for all devices."""
        options, count, device = self.options, len(window_BTC), window_BTC.device
        if options.shift:
            most = int(options.shift * window_BTC.shape[1])
            move_B = torch.randint(-most, most + 1, (count,), generator=generator).to(device)
            window_BTC = moved(window_BTC, move_B)
        if options.scaling:
            factor_B = 1 + options.scaling * (2 * torch.rand(count, generator=generator) - 1)
            window_BTC = window_BTC * factor_B.to(device)[:, None, None]
        if options.jitter:
            noise_BTC = torch.randn(window_BTC.shape, generator=generator).to(device)
            window_BTC = window_BTC + options.jitter * self.deviation_C * noise_BTC
        return window_BTC


def moved(window_BTC: Tensor, move_B: Tensor) -> Tensor:
    """Each window moved to later times by `move_B` samples (earlier if negative); edge values are repeated."""
    length = window_BTC.shape[1]
    time_T = torch.arange(length, device=window_BTC.device)
    source_BT = (time_T - move_B[:, None]).clamp(0, length - 1)
    return window_BTC.gather(1, source_BT[:, :, None].expand_as(window_BTC))
