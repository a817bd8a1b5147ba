"""Tables of three clinics that differ as real ones do: size, order of columns, separator, missing values, rare
texts."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RARE = "Zwergenhausen-Privatstation"  # a ward with two patients, at one clinic
WARDS = ("cardiology", "surgery", "geriatrics")
TASK: dict[str, Any] = {
    "name": "tabular",
    "target": "readmitted",
    "classes": ["no", "yes"],
    "numeric": ["age", "pressure", "crp"],
    "boolean": ["smoker"],
    "categorical": {"sex": ["f", "m"], "ward": []},
}
RUN: dict[str, Any] = {
    "task": TASK,
    "method": {"name": "fedavg"},
    "frame": {"dim": 8},
    "train": {"batch": 32, "lr": 0.01, "optimizer": "adamw"},
    "rounds": {"total": 2, "min_clients": 3},
}
SIZES = {"anna": 160, "bert": 90, "carl": 50}

Columns = dict[str, list[str]]


def clinic(name: str, rows: int, seed: int) -> Columns:
    """Columns of text; `""` and `NA` are missing values."""
    draw = np.random.default_rng(seed)
    age, pressure = draw.normal(50 + 3 * seed, 12, rows).round(), draw.normal(1200, 150, rows).round(1)
    crp, smoker = draw.exponential(5, rows).round(3), draw.random(rows) < 0.3
    ward = draw.choice(WARDS, rows, p=[0.5, 0.3, 0.2])
    ill = (
        0.08 * (age - 50) + 0.006 * (pressure - 1200) + smoker + (ward == "surgery") + draw.normal(0, 1, rows)
        > 0.8
    )
    table: Columns = {
        "patient": [f"{name}-{row}" for row in range(rows)],
        "age": [f"{value:g}" for value in age],
        "pressure": [f"{value:g}" for value in pressure],
        "crp": [f"{value:g}" for value in crp],
        "smoker": ["yes" if value else "no" for value in smoker],
        "sex": list(map(str, draw.choice(["f", "m"], rows))),
        "ward": list(map(str, ward)),
        "readmitted": ["yes" if value else "no" for value in ill],
    }
    for row in np.flatnonzero(draw.random(rows) < 0.2):
        table["crp"][row] = "NA"
    for row in np.flatnonzero(draw.random(rows) < 0.15):
        table["ward"][row] = ""
    return table


def write(path: Path, table: Mapping[str, Sequence[str]], *, separator: str = ",", bom: bool = False) -> str:
    """Write a CSV file; returns its data spec."""
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        rows = csv.writer(file, delimiter=separator)
        rows.writerow(table)
        rows.writerows(zip(*table.values(), strict=True))
    return f"csv:{path}"


def write_clinics(folder: Path) -> dict[str, str]:
    """The data specs of the three clinics. bert has a rare ward, another separator and another order."""
    specs = {}
    for seed, (name, rows) in enumerate(SIZES.items()):
        table = clinic(name, rows, seed)
        if name == "bert":
            table["ward"][4] = table["ward"][7] = RARE
            table = {key: table[key] for key in reversed(table)}
        specs[name] = write(
            folder / f"{name}.csv", table, separator=";" if name == "bert" else ",", bom=name == "carl"
        )
    return specs
