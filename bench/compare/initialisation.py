"""What a row says about its initialisation, and a picture of it: gradient cosine and norm, before and after.

Called by `training.py` for each row, and by `engine.py` for the picture. Runs nothing; imports matplotlib (extra
`demo`) only to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fednc.bench.compare.plots import new_figure, save
from fednc.server.storage.history import History

_FEW_ROUNDS = 6
_AXES = {"cosine": "mean cosine of the clients' gradients", "norm": "mean gradient norm"}
_BEFORE, _AFTER = "#BBBBBB", "#0072B2"


def figures(history: History) -> dict[str, Any]:
    """For the summary of a row: the metric after a few rounds, and [before, after]; nothing if not measured."""
    told = history.summary().get("init")
    if not told:
        return {}
    few = [value for number, value in history.curve if number == _FEW_ROUNDS]
    pairs = {f"gradient {key}": [told["before"][key], told["after"][key]] for key in (*_AXES, "loss")}
    return {**({f"round {_FEW_ROUNDS}": few[0]} if few else {}), **pairs}


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw bars before and after: means over seeds, with a dot per seed. Writes no file if no row has the figures.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if told := row["summary"].get("init"):
            by_name.setdefault(f"{row['setting']}, {row['variant']}", []).append(told)
    if not by_name:
        return
    figure = new_figure((9.6, 1.2 + 0.35 * len(by_name)))
    for axes, (key, label) in zip(figure.subplots(1, len(_AXES), sharey=True), _AXES.items(), strict=True):
        for place, found in enumerate(by_name.values()):
            for shift, when, colour in ((-0.2, "before", _BEFORE), (0.2, "after", _AFTER)):
                values = [told[when][key] for told in found]
                named = when if place == 0 else None
                axes.barh(place + shift, fmean(values), height=0.36, color=colour, label=named)
                axes.plot(values, [place + shift] * len(values), "k.", markersize=3)
        axes.set_yticks(range(len(by_name)), list(by_name))
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        if key == "norm":
            axes.set_xscale("log")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    save(figure, path)
