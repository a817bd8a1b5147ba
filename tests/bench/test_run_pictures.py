"""The pictures in a run's folder."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fednc.bench import run_pictures
from fednc.server.storage.history import spread_of

PNG = b"\x89PNG\r\n\x1a\n"
MEASURED = {"examples": 9, "calibration_error": 0.2, "loss": 1.0, "sure": 0.5, "bins": [[9, 0.5, 0.9]]}


def folder_of(path: Path, rounds: list[dict[str, Any]], calibration: dict[str, Any]) -> Path:
    metric = {"name": "accuracy", "higher_is_better": True, "unit": "%"}
    (path / "rounds.json").write_text(json.dumps(rounds))
    (path / "summary.json").write_text(json.dumps({"metric": metric, "calibration": calibration}))
    return path


def test_both_are_drawn_from_the_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rounds = [{"round": n, "spread": spread_of([0.1 * n, 0.5, 0.9])} for n in (1, 2, 3)]
    drawn = run_pictures.draw(folder_of(tmp_path, rounds, {"test": {"before": MEASURED, "after": MEASURED}}))
    assert [path.name for path in drawn] == ["clients.png", "reliability.png"]
    assert all(path.read_bytes().startswith(PNG) for path in drawn)


def test_without_figures_or_matplotlib_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [{"round": 1, "spread": spread_of([0.5])}, {"round": 2}]
    assert run_pictures.draw(folder_of(tmp_path, alone, {})) == []
    (tmp_path / "summary.json").write_text("{")
    assert run_pictures.draw(tmp_path) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert run_pictures.draw(tmp_path / "missing") == []


def test_a_long_run_keeps_its_first_and_last_round() -> None:
    rounds = [{"round": n, "spread": spread_of([0.1, 0.2])} for n in range(1, 501)]
    numbers = [number for number, _ in run_pictures.boxes_of(rounds)]
    assert (len(numbers), numbers[0], numbers[-1]) == (40, 1, 500)
    assert max(b - a for a, b in pairwise(numbers)) <= 14
