"""Tables of three small clinics, and a run over them: classes overlap, so that no model can be always sure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig, parse_run

NAMES = ("anna", "bert", "carl")
CLASSES = ("low", "mid", "high")
TABLES: dict[str, Any] = {
    "name": "clinics",
    "seed": 4,
    "task": {"name": "clinic", "classes": list(CLASSES), "features": ["a", "b"], "label": "y"},
    "frame": {"dim": 8},
    "train": {"batch": 16, "lr": 0.05},
    "rounds": {"total": 2, "min_clients": 2},
}


def write_clinic(path: Path, seed: int, rows: int) -> str:
    """A CSV file with columns a, b, y. Returns its data spec."""
    draw = np.random.default_rng(seed)
    label = draw.integers(0, 3, rows)
    value = draw.normal(size=(rows, 2)) + 1.2 * np.stack([label == 1, label == 2], axis=1)
    lines = [f"{a:.4f},{b:.4f},{CLASSES[y]}" for (a, b), y in zip(value, label, strict=True)]
    path.write_text("\n".join(["a,b,y", *lines]) + "\n")
    return f"csv:{path}"


def clinics(folder: Path, **settings: Any) -> list[ClientConfig]:
    """A client per clinic, with 120, 90 and 60 rows, a third of them held out."""
    return [
        ClientConfig(
            name=name,
            data=write_clinic(folder / f"{name}.csv", place, 120 - 30 * place),
            device="cpu",
            **{"val_share": 1 / 3, **settings},
        )
        for place, name in enumerate(NAMES)
    ]


def clinics_run(folder: Path, **changes: Any) -> RunConfig:
    """The run, with a test set of 150 rows."""
    test = {"test": write_clinic(folder / "test.csv", 9, 150)}
    values = {**TABLES, "evaluate": test}
    for table, change in changes.items():
        values[table] = {**values.get(table, {}), **change} if isinstance(change, dict) else change
    return parse_run(values)
