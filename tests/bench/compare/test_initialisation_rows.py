"""What rows and pictures of a comparison say about the initialisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from fednc.bench.compare.initialisation import draw, figures
from fednc.server.storage.history import History, RoundRecord

TOLD: dict[str, Any] = {
    "before": {"cosine": -0.3, "norm": 0.6, "loss": 2.3, "clients": 4},
    "after": {"cosine": 0.6, "norm": 45.0, "loss": 5.0, "clients": 4},
}


def history(init: dict[str, Any], rounds: int) -> History:
    return History(
        rounds=[
            RoundRecord(round=n, test={"accuracy": n / 10}, init=init if n == 1 else {})
            for n in range(1, rounds + 1)
        ]
    )


def test_rows_hold_cosine_norm_and_accuracy_after_six_rounds() -> None:
    found = figures(history(TOLD, 8))
    assert found["gradient cosine"] == [-0.3, 0.6]
    assert found["gradient norm"] == [0.6, 45.0]
    assert found["round 6"] == 0.6
    assert "round 6" not in figures(history(TOLD, 3))
    assert figures(history({}, 8)) == {}


def test_the_report_survives_a_checkpoint_s_json() -> None:
    again = History.from_json(history(TOLD, 2).to_json())
    assert again.summary()["init"] == TOLD
    assert "init" not in history({}, 2).summary()


def test_the_picture(tmp_path: Path) -> None:
    row = {"setting": "gain-0.7", "variant": "fedavg+nio", "summary": {"init": TOLD}}
    draw(tmp_path / "some.png", [row, {**row, "variant": "fedavg", "summary": {}}])
    with Image.open(tmp_path / "some.png") as picture:
        assert picture.width > 400
    draw(tmp_path / "none.png", [{**row, "summary": {}}])
    assert not (tmp_path / "none.png").exists()
