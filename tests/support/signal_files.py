"""Made-up signals: two channels, the class is the frequency, each person has another strength and offset."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WINDOW = 32
CLASSES = ("slow", "fast")
CHANNELS = ("left", "right")
TASK: dict[str, Any] = {
    "name": "signal",
    "classes": list(CLASSES),
    "channels": list(CHANNELS),
    "window": WINDOW,
    "width": 8,
}
RUN: dict[str, Any] = {
    "name": "signals",
    "seed": 3,
    "task": TASK,
    "frame": {"dim": 8},
    "train": {"batch": 16, "lr": 0.05},
    "rounds": {"total": 3, "min_clients": 2},
}


def recording(label: int, person: int, samples: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """float64 [samples, 2]."""
    rng = np.random.default_rng([label, person, seed])
    turn_L = 2 * np.pi * np.arange(samples) / (16, 5)[label] + rng.uniform(0, 6)
    wave_LC = np.stack([np.sin(turn_L), np.cos(turn_L)], axis=1) * (1 + person) * (1, 50)
    return wave_LC + rng.normal(0, 0.1, wave_LC.shape) + (10 * person, -300)


def windows(person: int, each: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(float32 [2 * each, T, C], labels)."""
    found = [recording(label, person, each * WINDOW).reshape(each, WINDOW, 2) for label in (0, 1)]
    return np.concatenate(found).astype(np.float32), np.repeat([0, 1], each)


def write_npz(path: Path, person: int, each: int = 20, **more: Any) -> str:
    """Windows of one person as an .npz; the spec."""
    x, y = windows(person, each)
    np.savez(path, **{"x_train": x, "y_train": y, "classes": np.array(CLASSES), **more})
    return f"npz:{path}"


def write_csv(path: Path, values_LC: np.ndarray[Any, Any], **columns: Sequence[object]) -> Path:
    """One recording, with further columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*CHANNELS, *columns])
        for i, row in enumerate(values_LC.tolist()):
            rows.writerow([*row, *(values[i] for values in columns.values())])
    return path


def write_folder(root: Path, samples: int = 200, person: int = 0) -> str:
    """Two recordings of each class in a folder of its name; the spec."""
    for label, name in enumerate(CLASSES):
        for take in range(2):
            write_csv(root / name / f"{take}.csv", recording(label, person, samples, take))
    return f"csv:{root}"
