"""Pictures of cosines: class means with each other beside those of the frame, and with class vectors.

Called with plain numbers at the end of a demo or a comparison; knows no run, no folder layout, no task.

Legend: K classes shown, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fednc.bench.compare.plots import new_figure, save, wrapped

_MAX_ANNOTATED = 10  # classes; with more the numbers would be too small to read
_MAX_NAMED = 25  # classes on an axis; of more, only some are named
_COLUMNS = 3  # heat maps side by side: with more the numbers would be too small on a page
_PANEL_INCH = 2.8
_MAX_LETTERS = 18  # of a class name on an axis
_TITLE_LETTERS = 36


def geometry(path: Path, means: Mapping[str, Tensor], etf_KD: Tensor, class_names: Sequence[str]) -> None:
    """Draw cosines between centred class means, one heat map per method and one for the frame.

    Means are centred because neural collapse (NC2) is defined on centred means; so is the frame. A class without a
    mean (a zero row) is left blank. Only the first len(class_names) rows are shown.

    Args:
        path: PNG file to write.
        means: for each method its class means [K or more, D].
        etf_KD: the frame.
        class_names: names of the classes so far.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    target_KK = cosines(etf_KD[: len(class_names)])
    panels = {}
    for name, mean_KD in means.items():
        cos_KK = cosines(mean_KD[: len(class_names)])
        panels[f"{wrapped(name, _TITLE_LETTERS)}\nmean distance to frame {_distance(cos_KK, target_KK):.2f}"] = (
            cos_KK
        )
    panels[f"frame\nall pairs {_off_diagonal(target_KK).mean():.2f}"] = target_KK
    _draw(path, panels, class_names, "cosine between centred class means")


def heat_maps(path: Path, panels: Mapping[str, Tensor], class_names: Sequence[str]) -> None:
    """Draw cosines of class means with class vectors, one heat map per method; collapse is a diagonal of ones.

    Args:
        path: PNG file to write.
        panels: for each method [K or more, K or more]; rows are class means, columns class vectors. NaN is left
            blank. Only the first K rows and columns are shown.
        class_names: K names.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    count, titled = len(class_names), {}
    for name, cosine_KK in panels.items():
        own = cosine_KK[:count, :count].diagonal().nanmean()
        title = f"{wrapped(name, _TITLE_LETTERS)}\nmean with its own class vector {own:.2f}"
        titled[title] = cosine_KK[:count, :count]
    _draw(path, titled, class_names, "cosine of class mean with class vector")


def cosines(mean_KD: Tensor) -> Tensor:
    """float64 [K, K] cosines of the rows, centred on the mean of the rows that are not zero; NaN at zero rows."""
    mean_KD = mean_KD.detach().cpu().double()
    seen_K = mean_KD.norm(dim=1) > 0
    centred_KD = torch.where(seen_K[:, None], mean_KD - mean_KD[seen_K].mean(dim=0), torch.nan)
    unit_KD = torch.nn.functional.normalize(centred_KD, dim=1)
    return unit_KD @ unit_KD.T


def _draw(path: Path, panels: Mapping[str, Tensor], class_names: Sequence[str], label: str) -> None:
    """Draw panels [K, K] by title. Each has a number for each class; the first of each row has the names too."""
    long = [name if len(name) <= _MAX_LETTERS else f"{name[: _MAX_LETTERS - 1]}…" for name in class_names]
    are_short = max(map(len, long)) <= 2
    short = long if are_short else [str(number) for number in range(1, len(long) + 1)]
    named = short if are_short else [f"{name}  {number}" for name, number in zip(long, short, strict=True)]
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    size_inch = (1.3 + 0.09 * max(map(len, named)) + _PANEL_INCH * columns, 0.3 + (_PANEL_INCH + 0.65) * rows)
    figure = new_figure(size_inch)
    grid = [figure.add_subplot(rows, columns, place + 1) for place in range(len(panels))]
    for place, (axes, (title, cos_KK)) in enumerate(zip(grid, panels.items(), strict=True)):
        image = _draw_heat_map(axes, cos_KK, title)
        _name_classes(axes, short, named if place % columns == 0 else short)
    figure.colorbar(image, ax=grid, label=label, shrink=min(0.8, 1.6 / rows), pad=0.02)
    save(figure, path, dpi=130, bbox_inches="tight")


def _draw_heat_map(axes: Any, cos_KK: Tensor, title: str) -> Any:
    image = axes.imshow(cos_KK.numpy(), cmap="PuOr", vmin=-1, vmax=1)
    axes.set_facecolor("#cccccc")  # shows through where a cell is NaN
    axes.set_title(title, fontsize=10)
    if len(cos_KK) <= _MAX_ANNOTATED:
        for row, column in torch.isfinite(cos_KK).nonzero().tolist():
            value = cos_KK[row, column].item()
            ink = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, _short(value), ha="center", va="center", fontsize=8, color=ink)
    return image


def _short(cosine: float) -> str:
    """`.83`, `-.07`, `1`, `0`."""
    text = f"{round(cosine, 2) + 0.0:.2f}"  # + 0.0: no minus before 0
    return text.replace("0.", ".").removesuffix(".00") or "0"


def _name_classes(axes: Any, across: Sequence[str], down: Sequence[str]) -> None:
    step = -(-len(across) // _MAX_NAMED)
    places = range(0, len(across), step)
    axes.set_xticks(places, across[::step], fontsize=8)
    axes.set_yticks(places, down[::step], fontsize=8)
    axes.tick_params(length=0)


def _off_diagonal(square_KK: Tensor) -> Tensor:
    return square_KK[~torch.eye(len(square_KK), dtype=torch.bool)]


def _distance(cos_KK: Tensor, target_KK: Tensor) -> float:
    return float(_off_diagonal(cos_KK - target_KK).abs().nanmean())
