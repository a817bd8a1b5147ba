"""What people see: overlays of every task, the predictions as files, a few words, and who attends to whom.

Called by the task at the end of a round and by `fednc predict`.

Legend: B batch, C channels, H height, W width, T tasks, P pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fednc.common.tasks.file_names import file_stem
from fednc.tasks.dense import pictures
from fednc.tasks.dense.described import most_frequent
from fednc.tasks.dense.maps import VOID, known
from fednc.tasks.dense.pictures import Bytes
from fednc.tasks.multitask.kinds import KINDS, SEGMENTATION
from fednc.tasks.multitask.model import MultitaskModel
from fednc.tasks.multitask.options import MultitaskOptions

_LEAST, _GAP, _LINE, _CELL = 128, 4, 14, 78
_SURE = 0.5  # a pixel is an edge, or salient, from this probability on
_YES, _UNKNOWN = np.array([255.0, 230.0, 60.0]), (90, 90, 110)
_NEAR, _FAR = np.array([250.0, 230.0, 120.0]), np.array([30.0, 30.0, 90.0])
Panel = tuple[str, Bytes | None]  # title and picture, or nothing in its place
_FULL = 65535  # depth 1 in a file of 16 bits


def picture(pixel_CHW: Tensor, options: MultitaskOptions) -> Bytes:
    """uint8 [H, W, 3]."""
    return pictures.as_bytes(pixel_CHW, options.mean, options.std)


def pages(
    pixels: Sequence[Bytes],
    found: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
    classes: Sequence[str],
    parts: Sequence[str],
) -> list[Image.Image]:
    """For each picture a panel of each task: the prediction above, the truth below where it is known.

    Args:
        found: predictions [B, C, H, W] by task.
        truth: by task, maps as batches hold them.
    """
    names = {SEGMENTATION: classes, "parts": parts}
    made = []
    for number, pixel_HW3 in enumerate(pixels):
        above: list[Panel] = [("picture", pixel_HW3)]
        below: list[Panel] = [("", None)]
        for task, value in found.items():
            many = len(names.get(task, ()))
            above.append((task, _painted(task, _predicted(task, value[number]), pixel_HW3, many)))
            real = truth[task][number : number + 1]
            is_known = bool(known(KINDS[task].map, real).any())
            below.append(("truth", _painted(task, real[0], pixel_HW3, many) if is_known else None))
        made.append(_grid([above, below] if any(panel is not None for _, panel in below) else [above]))
    return made


def _predicted(task: str, value_CHW: Tensor) -> Tensor:
    """The prediction in the form of its truth."""
    if task in (SEGMENTATION, "parts"):
        return value_CHW.argmax(dim=0)
    if task in ("edges", "saliency"):
        return value_CHW[0].sigmoid()
    return value_CHW if task == "normals" else value_CHW[0]


def _painted(task: str, value: Tensor, pixel_HW3: Bytes, classes: int) -> Bytes:
    """uint8 [H, W, 3]: a map over its picture."""
    if task in (SEGMENTATION, "parts"):
        return pictures.painted(pixel_HW3, value.byte().cpu().numpy(), classes)
    if task in ("edges", "saliency"):
        share_HW1 = value.float().cpu().clamp(0, 1).numpy()[..., None]
        found: Bytes = ((1 - share_HW1) * (pixel_HW3 // 2) + share_HW1 * _YES).round().astype(np.uint8)
        found[(value == VOID).cpu().numpy()] = _UNKNOWN
        return found
    if task == "normals":
        return _colours_of_normals(value)
    depth_HW1 = value.float().cpu().nan_to_num(1.0).clamp(0, 1).numpy()[..., None]
    coloured: Bytes = (_NEAR + depth_HW1 * (_FAR - _NEAR)).round().astype(np.uint8)
    return coloured


def _colours_of_normals(value_3HW: Tensor) -> Bytes:
    """uint8 [H, W, 3], as the reader of folders takes them: (value - 127.5) / 127.5."""
    found_HW3 = value_3HW.float().cpu().permute(1, 2, 0).numpy() * 127.5 + 127.5
    colour: Bytes = found_HW3.clip(0, 255).round().astype(np.uint8)
    return colour


def _grid(rows: Sequence[Sequence[Panel]]) -> Image.Image:
    """Panels with titles, in rows and columns."""
    first = rows[0][0][1]
    assert first is not None
    times = -(-_LEAST // first.shape[0])
    height, width = first.shape[0] * times, first.shape[1] * times
    page = Image.new("RGB", (len(rows[0]) * (width + _GAP), len(rows) * (height + _LINE + _GAP)), "white")
    draw = ImageDraw.Draw(page)
    for row, panels in enumerate(rows):
        for column, (title, panel) in enumerate(panels):
            x, y = column * (width + _GAP), row * (height + _LINE + _GAP)
            draw.text((x, y), title if panel is not None else "", fill="black")
            if panel is not None:
                shown = Image.fromarray(panel).resize((width, height), Image.Resampling.NEAREST)
                page.paste(shown, (x, y + _LINE))
    return page


# ---- predictions as files and words -------------------------------------------------------------------------


def files(made: Sequence[Image.Image], found: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, bytes]:
    """For each picture `NAME-overlay.png`, and `NAME-TASK.png` in the form that the reader of folders takes.

    Edges and saliency are probabilities, from 0 to 255.
    """
    made_files = {}
    for number, name in enumerate(names):
        stem = file_stem(name)
        made_files[f"{stem}-overlay.png"] = pictures.as_png(made[number])
        for task, value in found.items():
            made_files[f"{stem}-{task}.png"] = pictures.as_png(_file_of(task, _predicted(task, value[number])))
    return made_files


def _file_of(task: str, value: Tensor) -> Image.Image:
    if task == "depth":
        return Image.fromarray((value.clamp(0, 1) * _FULL).round().cpu().numpy().astype(np.uint16))
    if task == "normals":
        return Image.fromarray(_colours_of_normals(value))
    factor = 255 if task in ("edges", "saliency") else 1
    return Image.fromarray((value * factor).round().byte().cpu().numpy())


def described(found: Mapping[str, Tensor], classes: Sequence[str], parts: Sequence[str]) -> list[dict[str, Any]]:
    """For each picture a few words on the prediction of each task."""
    count = len(next(iter(found.values()))) if found else 0
    rows: list[dict[str, Any]] = [{} for _ in range(count)]
    for task, value in found.items():
        for row, told in zip(rows, _told(task, value, classes, parts), strict=True):
            row |= told
    return rows


def _told(task: str, value: Tensor, classes: Sequence[str], parts: Sequence[str]) -> list[dict[str, Any]]:
    if task == SEGMENTATION:
        return most_frequent(value, classes)
    if task == "parts":
        return [{"parts": row["classes"]} for row in most_frequent(value, parts)]
    if task == "depth":
        return [{"mean depth": round(float(each.mean()), 3)} for each in value]
    if task == "normals":
        tilt_B = torch.rad2deg(torch.acos(value[:, 2].clamp(-1, 1))).mean(dim=(1, 2))
        return [{"mean tilt": f"{float(tilt):.0f}°"} for tilt in tilt_B]
    share_B = (value[:, 0].sigmoid() >= _SURE).float().mean(dim=(1, 2))
    return [{task: f"{float(share):.0%} of the pixels"} for share in share_B]


# ---- examples of a run --------------------------------------------------------------------------------------


def examples(made: Sequence[Image.Image], model: MultitaskModel, inputs: Tensor) -> dict[str, bytes]:
    """`pictures.png`, and with an interaction `interaction.png`."""
    found = {"pictures.png": pictures.as_png(pictures.sheet(made))}
    if model.interaction is not None:
        found["interaction.png"] = pictures.as_png(attention_picture(model.tasks, *model.attention(inputs)))
    return found


def attention_picture(tasks: Sequence[str], among_TT: Tensor, asked_TT: Tensor) -> Image.Image:
    """Two tables: how much each task (row) attends to each other one (column), darker for more."""
    label = max(len(task) for task in tasks) * 7
    side = label + len(tasks) * _CELL
    page = Image.new("RGB", (2 * (side + 4 * _GAP), len(tasks) * _CELL + 3 * _LINE), "white")
    draw = ImageDraw.Draw(page)
    tables = (("interaction: who attends to whom", among_TT), ("query: who asks whom", asked_TT))
    for place, (title, share_TT) in enumerate(tables):
        left = place * (side + 4 * _GAP)
        draw.text((left, 0), title, fill="black")
        for row, task in enumerate(tasks):
            draw.text((left + label + row * _CELL + 2, _LINE), task, fill="black")
            draw.text((left, 2 * _LINE + row * _CELL + _CELL // 2 - 6), task, fill="black")
            for column, share in enumerate(share_TT[row].tolist()):
                _cell(draw, (left + label + column * _CELL, 2 * _LINE + row * _CELL), share)
    return page


def _cell(draw: ImageDraw.ImageDraw, corner: tuple[int, int], share: float) -> None:
    shade = round(255 * (1 - min(1.0, share)))
    x, y = corner
    draw.rectangle((x, y, x + _CELL - 2, y + _CELL - 2), fill=(shade, shade, 255))
    draw.text((x + 12, y + _CELL // 2 - 6), f"{share:.0%}", fill="white" if share > 0.5 else "black")
