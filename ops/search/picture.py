"""Pictures of a search: values by trial with the curves of all trials, and two trials side by side for a person.

Imports matplotlib (extra `demo`) only to draw.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from fednc.ops.search.study import SearchView, TrialView

PICTURE = "search.png"
_COLOURS = {"complete": "#0072B2", "pruned": "#999999", "failed": "#D55E00", "running": "#E69F00"}
_BEST = "#009E73"
_EXAMPLES = ("*.png",)
_FONT = 9


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_search(view: SearchView, path: Path) -> Path | None:
    """The primary metric by round of every trial, and each objective by trial; None without matplotlib."""
    if not can_draw():
        return None
    figure = _figure((11, 4.2))
    curves, scatter = figure.subplots(1, 2)
    _draw_curves(curves, view)
    _draw_objectives(scatter, view)
    figure.savefig(path, dpi=120)
    return path


def draw_pair(one: TrialView, other: TrialView, metric: str, path: Path) -> Path | None:
    """Curves of two trials, and below each its newest example picture; None without matplotlib."""
    if not can_draw():
        return None
    from matplotlib import image

    found = [_example(one), _example(other)]
    figure = _figure((9, 8.0 if any(found) else 3.6))
    grid = figure.add_gridspec(2 if any(found) else 1, 2)
    axes = figure.add_subplot(grid[0, :])
    for trial, colour in ((one, "#0072B2"), (other, "#D55E00")):
        rounds = sorted(trial.curve)
        axes.plot(rounds, [trial.curve[number] for number in rounds], "o-", color=colour, label=_named(trial))
    _label(axes, "round", metric)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=_FONT - 1, frameon=False)
    for column, (trial, file) in enumerate(zip((one, other), found, strict=True)):
        if file is not None:
            below = figure.add_subplot(grid[1, column])
            below.imshow(image.imread(str(file)))
            below.set_title(f"trial {trial.number}", fontsize=_FONT)
            below.axis("off")
    figure.savefig(path, dpi=120)
    return path


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _draw_curves(axes: Any, view: SearchView) -> None:
    shown = [trial for trial in view.trials if trial.curve and not trial.superseded]
    for trial in sorted(shown, key=lambda trial: trial.number in view.best):
        rounds, is_best = sorted(trial.curve), trial.number in view.best
        values = [trial.curve[number] for number in rounds]
        style = {
            "color": _BEST if is_best else _COLOURS.get(trial.state, "#999999"),
            "lw": 2.2 if is_best else 1.0,
        }
        axes.plot(rounds, values, "o-", ms=3, alpha=1.0 if is_best else 0.6, **style)
        if is_best:
            axes.annotate(f" {trial.number}", (rounds[-1], values[-1]), fontsize=_FONT, color=_BEST)
    _label(axes, "round", view.metric or "primary")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title("trials by round; best in green, pruned in grey", fontsize=_FONT)


def _draw_objectives(axes: Any, view: SearchView) -> None:
    names = list(view.objectives)
    done = [trial for trial in view.trials if trial.values]
    colours = [_BEST if trial.number in view.best else _COLOURS["complete"] for trial in done]
    if len(names) > 1:
        axes.scatter([t.values[names[1]] for t in done], [t.values[names[0]] for t in done], c=colours, s=28)
        _label(axes, names[1], names[0])
        axes.set_title("objectives; trials in green are beaten by no other in all", fontsize=_FONT)
    else:
        axes.scatter([t.number for t in done], [t.values[names[0]] for t in done], c=colours, s=28)
        _label(axes, "trial", names[0])
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title("value by trial", fontsize=_FONT)


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x.replace("_", " "), fontsize=_FONT)
    axes.set_ylabel(y.replace("_", " "), fontsize=_FONT)
    axes.tick_params(labelsize=_FONT - 1)
    axes.spines[["top", "right"]].set_visible(False)


def _named(trial: TrialView) -> str:
    settings = [f"{key} {_short(value)}" for key, value in trial.settings.items()]
    return f"trial {trial.number}: {', '.join(settings)}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _example(trial: TrialView) -> Path | None:
    folder = Path(trial.folder) / "examples"
    found = sorted(file for pattern in _EXAMPLES for file in folder.glob(pattern)) if trial.folder else []
    return found[-1] if found else None
