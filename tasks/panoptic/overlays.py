"""Pictures for people: segments in colours, parts hatched, what was matched and what was missed told apart.

Called by the task at the end of a round and by `fednc predict`. Knows no model.

Legend: C channels, H height, W width, L height and M width of an enlarged picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from fednc.tasks.dense import maps as kinds
from fednc.tasks.dense.maps import VOID
from fednc.tasks.dense.pictures import Bytes, as_png, colours, sheet
from fednc.tasks.dense.scenes import borders
from fednc.tasks.panoptic.columns import Columns
from fednc.tasks.panoptic.merging import INSTANCE, PART, SEMANTIC
from fednc.tasks.panoptic.segments import overlap
from fednc.tasks.panoptic.task_metrics import empty, maps_of

_LEAST = 240  # pixels; smaller pictures are enlarged to at least this height
_GAP, _LINE = 6, 14
_NO_NUMBER = 65535
_SHARE = 0.5  # of the colour of a class over the picture
_GREEN, _RED, _AMBER, _GREY = (40, 170, 70), (215, 40, 40), (245, 160, 20), (70, 70, 70)
_STRIPES = 6  # pixels from one line of a hatch to the next
_JUDGEMENT = ((_GREEN, "matched"), (_RED, "missed"), (_AMBER, "predicted wrongly"), (_GREY, "not judged"))


def page(pixel_HW3: Bytes, guess_3HW: Tensor, truth_3HW: Tensor, columns: Columns) -> Image.Image:
    """Picture, prediction and, where labels are known, truth and what was matched, in a row, with a legend."""
    times = -(-_LEAST // pixel_HW3.shape[0])
    panels = [
        ("picture", _large(pixel_HW3, times)),
        ("prediction", _segments(pixel_HW3, guess_3HW, columns, times)),
    ]
    if (truth_3HW[SEMANTIC] != VOID).any():
        panels.append(("truth", _segments(pixel_HW3, truth_3HW, columns, times)))
        panels.append(("matched and missed", _judged(guess_3HW, truth_3HW, columns, times)))
    width, height = panels[0][1].width + _GAP, panels[0][1].height
    legend = _legend(guess_3HW, truth_3HW, columns, judged=len(panels) > 2)
    across = max(1, len(panels) * width // 130)
    lines = -(-len(legend) // across)
    found = Image.new("RGB", (len(panels) * width, _LINE + height + _GAP + lines * _LINE), "white")
    draw = ImageDraw.Draw(found)
    for place, (title, panel) in enumerate(panels):
        draw.text((place * width, 0), title, fill="black")
        found.paste(panel, (place * width, _LINE))
    for place, (patch, text) in enumerate(legend):
        x, y = place % across * 130, _LINE + height + _GAP + place // across * _LINE
        found.paste(patch, (x, y + 1))
        draw.text((x + 16, y), text[:18], fill="black")
    return found


def as_file(pages: Sequence[Image.Image]) -> bytes:
    """A PNG of pages below each other."""
    return as_png(sheet(pages))


def coded(maps_3HW: Tensor) -> dict[str, bytes]:
    """Grey PNGs of the maps, by the names of the folders in which `folder:` reads them.

    Instances have 16 bits, because there may be more than 255, and 65535 is none.
    """
    label, instance, part = (maps_3HW[each].numpy() for each in (SEMANTIC, INSTANCE, PART))
    numbers: dict[str, np.ndarray[Any, Any]] = {
        kinds.LABEL: label.astype(np.uint8),
        kinds.INSTANCE: np.where(instance < 0, _NO_NUMBER, instance).astype(np.uint16),
        kinds.PART: part.astype(np.uint8),
    }
    return {kind: as_png(Image.fromarray(value)) for kind, value in numbers.items()}


def listed(maps_3HW: Tensor, columns: Columns) -> str:
    """`2 car, 1 person, road`: the segments of a picture."""
    maps = maps_of(maps_3HW)
    found = []
    for value, name in enumerate(columns.classes):
        here_HW = maps["semantic"] == value
        if here_HW.any():
            count = len(np.unique(maps["instance"][here_HW]))
            found.append(f"{count} {name}" if value in columns.things else name)
    return ", ".join(found)


# ---- panels -----------------------------------------------------------------------------------------------------


def _large(pixel_HW3: Bytes, times: int) -> Image.Image:
    return Image.fromarray(_enlarged(pixel_HW3, times))


def _enlarged(value: np.ndarray[Any, Any], times: int) -> np.ndarray[Any, Any]:
    return value.repeat(times, axis=0).repeat(times, axis=1)


def _segments(pixel_HW3: Bytes, maps_3HW: Tensor, columns: Columns, times: int) -> Image.Image:
    """Classes in colours, parts hatched, a white line around every segment; void stays as it is."""
    maps = {name: _enlarged(value, times) for name, value in maps_of(maps_3HW).items()}
    label_LM, picture = maps["semantic"], _enlarged(pixel_HW3, times)
    colour = colours(len(columns.classes))[label_LM.astype(np.uint8)].astype(np.float64)
    hatch_LM = _hatch(maps["part"])
    colour[hatch_LM] *= 0.35
    mixed = (1 - _SHARE) * picture + _SHARE * colour
    mixed[hatch_LM] = 0.3 * mixed[hatch_LM] + 0.7 * colour[hatch_LM]
    mixed[label_LM == VOID] = picture[label_LM == VOID]
    mixed[borders(label_LM * 1000 + maps["instance"]) > 0] = 255
    return Image.fromarray(mixed.round().astype(np.uint8))


def _hatch(part_LM: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Lines over the parts: part 1 falls, part 2 rises, part 3 is level, part 4 upright, and so on more widely."""
    down, right = np.indices(part_LM.shape)
    found = np.zeros(part_LM.shape, bool)
    for part in np.unique(part_LM[(part_LM != 0) & (part_LM != VOID)]).tolist():
        way = (down - right, down + right, down, right)[(part - 1) % 4]
        found |= (part_LM == part) & (way % (_STRIPES * (1 + (part - 1) // 4)) == 0)
    return found


def _judged(guess_3HW: Tensor, truth_3HW: Tensor, columns: Columns, times: int) -> Image.Image:
    """Green: matched segments of the truth; red: missed ones; amber outlines and spots: predictions without
    match.
    """
    found = overlap(maps_of(truth_3HW), maps_of(guess_3HW), empty(columns).ids)
    colour_HW3 = np.full((*found.void_HW.shape, 3), _GREY, np.uint8)
    hit_T, hit_P = {t for t, _ in found.matches}, {p for _, p in found.matches}
    for number in range(len(found.truth.class_S)):
        colour_HW3[found.truth.number_HW == number] = _GREEN if number in hit_T else _RED
    wrong = [p for p in range(len(found.guess.class_S)) if p not in hit_P and not found.excused_P[p]]
    colour = _enlarged(colour_HW3, times)
    lines_LM = borders(_enlarged(found.truth.number_HW, times)) > 0
    colour[lines_LM] = 255
    wrong_LM = _enlarged(np.isin(found.guess.number_HW, wrong), times)
    down, right = np.indices(wrong_LM.shape)
    colour[wrong_LM & ((down + right) % 8 < 3)] = _AMBER
    return Image.fromarray(colour)


def _legend(
    guess_3HW: Tensor, truth_3HW: Tensor, columns: Columns, *, judged: bool
) -> list[tuple[Image.Image, str]]:
    """(a patch, what it means): classes and parts that occur, then the judgements."""
    table, patches = colours(len(columns.classes)), []
    both = [maps_of(each) for each in (guess_3HW, truth_3HW)]
    for value, name in enumerate(columns.classes):
        if any((maps["semantic"] == value).any() for maps in both):
            patches.append((Image.new("RGB", (12, 12), tuple(map(int, table[value]))), name))
    for (whole, part), name in zip(columns.parts, columns.part_names, strict=True):
        if any(((maps["semantic"] == whole) & (maps["part"] == part)).any() for maps in both):
            patch = np.full((12, 12, 3), table[whole], np.uint8)
            patch[_hatch(np.full((12, 12), part))] = table[whole] * 0.35
            patches.append((Image.fromarray(patch), name))
    if judged:
        patches += [(Image.new("RGB", (12, 12), colour), text) for colour, text in _JUDGEMENT]
    return patches
