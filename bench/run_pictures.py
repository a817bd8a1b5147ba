"""Pictures of one run, from the files in its folder: the clients by round, and how far confidences can be trusted.

    clients.png       a box per evaluated round: the primary metric over the clients
    reliability.png   accuracy by confidence on the server's test data, before and after calibration
    probe.png         the losses of the probe's candidates (`[probe]`), drawn as soon as they are known

Called at the end of `fednc server` and `fednc.run`, and by `fednc server` after a probe. Imports matplotlib (extra
`demo`) only to draw. Without it, or without the figures that a picture shows, there is none.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fednc.bench.compare.plots import new_figure
from fednc.common.tasks.metric_info import PERCENT, MetricInfo
from fednc.server.storage import probe_record

CLIENTS, RELIABILITY, PROBE = "clients.png", "reliability.png", "probe.png"
_MOST_BOXES = 40  # of a long run, evenly spread over its rounds

log = logging.getLogger("fednc.bench")


def draw(folder: Path) -> list[Path]:
    """Draw what the files in a finished run's folder allow; the pictures that were written.

    A failure is only logged: a picture must not cost a run that has ended well.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    drawn = draw_probe(folder)
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        rounds = json.loads((folder / "rounds.json").read_text("utf-8"))
        if boxes := boxes_of(rounds):
            draw_clients(folder / CLIENTS, boxes, MetricInfo(**summary["metric"]))
            drawn.append(folder / CLIENTS)
        if test := summary.get("calibration", {}).get("test"):
            draw_reliability(folder / RELIABILITY, test)
            drawn.append(folder / RELIABILITY)
    except Exception:
        log.exception("the pictures of %s could not be drawn", folder)
    return drawn


def draw_probe(folder: Path) -> list[Path]:
    """Draw what the probe said, if the run has made one and matplotlib is there; the picture that was written."""
    record = folder / probe_record.FILE
    if importlib.util.find_spec("matplotlib") is None or not record.exists():
        return []
    try:
        draw_curves(folder / PROBE, json.loads(record.read_text("utf-8"))["verdict"])
    except Exception:
        log.exception("%s could not be drawn", record)
        return []
    return [folder / PROBE]


def boxes_of(rounds: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, float]]]:
    """(round, spread) of the rounds in which at least two clients were evaluated; of very many only some."""
    found = [(one["round"], one["spread"]) for one in rounds if one.get("spread", {}).get("clients", 0) > 1]
    if len(found) <= _MOST_BOXES:
        return found
    places = sorted({round(k * (len(found) - 1) / (_MOST_BOXES - 1)) for k in range(_MOST_BOXES)})
    return [found[place] for place in places]


def draw_clients(path: Path, boxes: Sequence[tuple[int, Mapping[str, float]]], metric: MetricInfo) -> None:
    """A box per round: median, quartiles, and whiskers to the worst and the best client."""
    scale = 100 if metric.unit == PERCENT else 1
    figure = new_figure((max(5.0, 1.5 + 0.28 * len(boxes)), 4.0))
    axes = figure.subplots()
    stats = [
        {
            "med": scale * spread["median"],
            "q1": scale * spread["q1"],
            "q3": scale * spread["q3"],
            "whislo": scale * spread["min"],
            "whishi": scale * spread["max"],
        }
        for _, spread in boxes
    ]
    axes.bxp(stats, positions=range(len(boxes)), showfliers=False, widths=0.6)
    axes.set_xticks(range(len(boxes)), [str(number) for number, _ in boxes], fontsize=8)
    axes.set_xlabel("round")
    unit = f" ({metric.unit})" if metric.unit else ""
    axes.set_ylabel(f"{metric.name.replace('_', ' ')} of each client, held out{unit}")
    axes.set_title(f"{int(boxes[-1][1]['clients'])} clients: worst, quartiles, best", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def draw_curves(path: Path, verdict: Mapping[str, Any]) -> None:
    """A panel for each family: held-out and training loss by the value of its axis, and the fitted curve."""
    families, picked = verdict["families"], verdict["picked"]
    figure = new_figure((4.2 * len(families) + 0.4, 4.0))
    row = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for axes, family in zip(row, families, strict=True):
        values = family["values"]
        axes.plot(values, family["held_out"], "o-", color="#0072B2", linewidth=1.6, label="held out")
        axes.plot(values, family["train"], "s--", color="#999999", linewidth=1.2, label="training")
        if family["fitted"]:
            axes.plot(values, family["fitted"], ":", color="#0072B2", linewidth=1.2, label="fitted")
        is_picked = family["name"] == picked["family"]
        axes.axvline(family["best"], color="#D55E00", linewidth=1, linestyle="-" if is_picked else ":")
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=8)
        axes.minorticks_off()
        axes.set_xlabel(family["axis"])
        chosen = ", picked" if is_picked else ""
        axes.set_title(f"{family['name']}: {family['loss']:.3f} at {family['best']:g}{chosen}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    row[0].set_ylabel("mean loss of the candidates")
    row[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def draw_reliability(path: Path, test: Mapping[str, Mapping[str, Any]]) -> None:
    """Accuracy against mean confidence of each bin; the area of a dot grows with its examples."""
    figure = new_figure((4.2 * len(test) + 0.4, 4.2))
    row = figure.subplots(1, len(test), sharey=True, squeeze=False)[0]
    for axes, (when, found) in zip(row, test.items(), strict=True):
        axes.plot([0, 100], [0, 100], color="#888888", linewidth=1, linestyle="--")
        confidence = [100 * mean for _, _, mean in found["bins"]]
        accuracy = [100 * right for _, right, _ in found["bins"]]
        area = [20 + 400 * count / max(1, found["examples"]) for count, _, _ in found["bins"]]
        axes.plot(confidence, accuracy, color="#0072B2", linewidth=1.2)
        axes.scatter(confidence, accuracy, s=area, color="#0072B2", alpha=0.6)
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xlabel("confidence (%)")
        axes.set_title(
            f"{when}: calibration error {found['calibration_error']:.1%}\n{found['sure']:.0%} above 99.9 %",
            fontsize=10,
        )
        axes.spines[["top", "right"]].set_visible(False)
    row[0].set_ylabel("accuracy (%)")
    figure.savefig(path, dpi=120)
