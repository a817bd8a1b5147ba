"""What adversary and generator minimise.

Least squares for the adversary; for the generator its judgement, the absolute difference to the truth, and the
difference of features and of their Gram matrices on a frozen network. Called by the task.

Legend: B batch, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fednc.tasks.colorize.options import ColorizeOptions
from fednc.tasks.colorize.perceptual import gram, perceptual_network


def adversary_loss(adversary: nn.Module, line_B1HW: Tensor, truth_B3HW: Tensor, made_B3HW: Tensor) -> Tensor:
    """E (D(truth) - 1)^2 + E D(made)^2."""
    real = adversary(torch.cat([truth_B3HW, line_B1HW], dim=1))
    fake = adversary(torch.cat([made_B3HW, line_B1HW], dim=1))
    found: Tensor = (real - 1).square().mean() + fake.square().mean()
    return found


def generator_loss(
    options: ColorizeOptions, adversary: nn.Module, line_B1HW: Tensor, truth_B3HW: Tensor, made_B3HW: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """(the weighted sum, its weighted parts by name, detached)."""
    terms = {}
    if options.adversarial:
        judged = adversary(torch.cat([made_B3HW, line_B1HW], dim=1))
        terms["adversarial"] = options.adversarial * (judged - 1).square().mean()
    if options.l1:
        terms["l1"] = options.l1 * (made_B3HW - truth_B3HW).abs().mean()
    if options.perceptual or options.style:
        network = perceptual_network(options.perceptual_width, options.perceptual_weights, made_B3HW.device)
        pairs = list(zip(network(made_B3HW), network(truth_B3HW), strict=True))
        if options.perceptual:
            terms["perceptual"] = options.perceptual * _distance(pairs)
        if options.style:
            grams = [(gram(made, options.gram), gram(truth, options.gram)) for made, truth in pairs]
            terms["style"] = options.style * _distance(grams)
    return torch.stack(list(terms.values())).sum(), {name: term.detach() for name, term in terms.items()}


def _distance(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([(one - other).abs().mean() for one, other in pairs]).sum()
