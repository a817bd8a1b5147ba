"""A picture of the branches of attention blocks: each one's gradient beside that of the whole input.

Called by `fednc inspect gradients`. Needs pillow only, as the base install has it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from fednc.common.learning.attention_branches import BranchCosines

_BINS, _WIDTH, _HEIGHT, _LINE, _LEFT = 40, 6, 60, 14, 170  # bars of a row, pixels of a bar, of a row, of a line
_AGREE, _AGAINST, _MIDDLE = (46, 125, 170), (200, 70, 60), (170, 170, 170)


def branch_picture(found: Sequence[BranchCosines]) -> bytes:
    """A PNG: a histogram over tokens of each branch's cosine with the total, from -1 to 1."""
    step = _HEIGHT + 2 * _LINE
    page = Image.new("RGB", (_LEFT + _BINS * _WIDTH + 140, _LINE + len(found) * step), "white")
    draw = ImageDraw.Draw(page)
    draw.text(
        (4, 0), "cosine of each branch's gradient with the gradient of the whole input, over tokens", "black"
    )
    for row, branch in enumerate(found):
        _draw_row(draw, _LINE + row * step, branch)
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def _draw_row(draw: ImageDraw.ImageDraw, top: int, branch: BranchCosines) -> None:
    told = branch.summary()
    draw.text((4, top + _LINE), f"{branch.block}\n{branch.given}: {branch.branch}", "black")
    base, right = top + _LINE + _HEIGHT, _LEFT + _BINS * _WIDTH
    known_T = branch.total_T[~branch.total_T.isnan()]
    count = torch.histc(known_T.float(), bins=_BINS, min=-1, max=1)
    highest = float(count.max()) or 1.0
    for place, value in enumerate(count.tolist()):
        left, colour = _LEFT + place * _WIDTH, _AGAINST if place < _BINS // 2 else _AGREE
        draw.rectangle((left, base - _HEIGHT * value / highest, left + _WIDTH - 2, base), fill=colour)
    draw.line((_LEFT, base, right, base), fill="black")
    draw.line((_LEFT + _BINS * _WIDTH // 2, base - _HEIGHT, _LEFT + _BINS * _WIDTH // 2, base), fill=_MIDDLE)
    for text, x in (("-1", _LEFT), ("0", _LEFT + _BINS * _WIDTH // 2), ("1", right - 6)):
        draw.text((x, base + 1), text, "black")
    text = "no gradient" if branch.is_cut else f"mean {told['token']:.2f}\nshare {told['share']:.0%}"
    draw.text((right + 8, top + _LINE), text, "black")
