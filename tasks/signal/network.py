"""A 1-D CNN for windows of signals: convolutions over time, group normalisation, the mean over time.

Built by the task. Inputs are [B, T, C] as in the data; the first layer standardises each channel with the
federation's mean and deviation. Must not know data, losses or methods.

Legend: B batch, T samples of a window, C channels, W width.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from fednc.common.tasks.moments import Standardise
from fednc.tasks.signal.options import SignalOptions

GROUPS = 8  # divides every width
_KERNELS = (7, 5, 5, 3)


class ChannelsFirst(nn.Module):
    """[B, T, C] to [B, C, T]."""

    def forward(self, signal_BTC: Tensor) -> Tensor:
        """Convolutions want the channels before the time."""
        return signal_BTC.transpose(1, 2)


def build_network(options: SignalOptions) -> tuple[nn.Module, int]:
    """(layers from windows [B, T, C] to features [B, W], W), initialised from torch's global generator."""
    layers = [Standardise(len(options.channels)), ChannelsFirst(), *_convolutions(options)]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network, 2 * options.width


def _convolutions(options: SignalOptions) -> Iterator[nn.Module]:
    """Halves the time after the first three convolutions; a window has at least eight samples."""
    widths = (len(options.channels), options.width, options.width, 2 * options.width, 2 * options.width)
    for place, kernel in enumerate(_KERNELS):
        yield nn.Conv1d(widths[place], widths[place + 1], kernel, padding=kernel // 2, bias=False)
        if place < len(_KERNELS) - 1:
            yield nn.MaxPool1d(2)
        yield nn.GroupNorm(GROUPS, widths[place + 1])
        yield nn.ReLU()
