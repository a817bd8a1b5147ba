"""The panoptic task in a federation: metrics that refuse lies, pictures for people, owners of parts, missing
scipy.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fednc
from fednc.common.errors import ConfigError, MissingExtraError, ProtocolError
from fednc.common.tasks import temperature
from fednc.common.tasks.api import add_stats
from fednc.tasks.dense.maps import INSTANCE, LABEL, PART, VOID
from fednc.tasks.dense.pictures import as_png
from fednc.tasks.panoptic import overlays
from fednc.tasks.panoptic.task import PARTS
from support.panoptic_tasks import batch_of, ready, task_of

PAIR = {"a": "streets:images=6,test=2,seed=1", "b": "streets:images=6,test=2,seed=2,parts=no"}


def tables(**task: object) -> dict[str, object]:
    given = task_of(stages=1, width=8, heads=2, pyramid=[8, 8], **task).run.model_dump(exclude_unset=True)
    given |= {"train": {"epochs": 1, "batch": 3, "optimizer": "adamw", "lr": 0.01}}
    given |= {"rounds": {"total": 1, "min_clients": 2}, "evaluate": {"test": PAIR["a"], "batch": 2}}
    return {**given, "method": {"name": "fednc", "readout": "memory"}}


def test_part_weights_are_those_of_the_client_with_part_labels() -> None:
    """The same run in which the other client has learnt nothing at all of parts gives the same part weights."""
    alone = {name: spec for name, spec in PAIR.items() if name == "a"}
    both = fednc.run(tables(), PAIR, progress=False, val_share=0.0)
    one = fednc.run({**tables(), "rounds": {"total": 1, "min_clients": 1}}, alone, progress=False, val_share=0.0)
    states = [dict(found.model.model.state_dict().items()) for found in (both, one)]
    parts = [key for key in states[0] if key.startswith(PARTS)]
    assert parts
    assert all(torch.equal(states[0][key], states[1][key]) for key in parts)
    assert any(not torch.equal(value, states[1][key]) for key, value in states[0].items() if key not in parts)
    assert {"part_pq", "pq"} <= set(both.metrics)


def test_statistics_of_clients_add_up_and_lies_are_refused() -> None:
    task = task_of()
    model, data, guide = ready(task)
    model.eval()
    whole, pieces = task.statistics(model, batch_of(data), guide), {}
    for batch in data.eval_batches(2):
        add_stats(pieces, task.statistics(model, batch, guide))
    assert all(torch.equal(pieces[name], value) for name, value in whole.items())
    assert task.check_statistics(whole, data.examples)
    lies = {
        "part_iou_C": whole["part_iou_C"] + 100.0,
        "whole_count_C3": whole["whole_count_C3"] - 10**6,
        "part_count_C3": whole["part_count_C3"] + 10**9,
        "part_pixel_L3": whole["part_pixel_L3"] + torch.tensor([10**6, 0, 0]),
    }
    for name, value in lies.items():
        with pytest.raises(ProtocolError, match="contradict"):
            task.check_statistics({**whole, name: value}, data.examples)
    none = task.no_statistics()
    assert {name: value.shape for name, value in none.items()} == {
        name: value.shape for name, value in whole.items()
    }


@pytest.mark.parametrize("sums", ["part_iou_C", "whole_iou_C"])
def test_sums_of_iou_that_are_no_numbers_are_refused(sums: str) -> None:
    task = task_of()
    stats = {**task.no_statistics(), "examples": torch.tensor(2)}
    with pytest.raises(ProtocolError):
        task.check_statistics({**stats, sums: torch.full_like(stats[sums], float("nan"))}, 2)


def test_no_temperature_is_fitted_to_maps() -> None:
    assert not temperature.is_calibrated(task_of())


def test_a_metric_can_be_chosen() -> None:
    run = task_of().run
    chosen = run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"metric": "part_miou"})})
    assert type(task_of())(chosen).primary.name == "part_miou"
    wrong = run.model_copy(update={"evaluate": run.evaluate.model_copy(update={"metric": "miou"})})
    with pytest.raises(ConfigError, match="part_miou"):
        type(task_of())(wrong)


def test_pictures_show_what_was_matched_and_what_was_missed() -> None:
    task = task_of()
    _, data, _ = ready(task)
    truth = torch.stack(batch_of(data)[1:], dim=1)[0]
    guess = truth.clone()
    lost = int(truth[1].max())
    guess[:, truth[1] == lost] = torch.tensor([[255], [-1], [0]])
    pixel = data.pixel_NCHW[0].permute(1, 2, 0).numpy()
    page = np.asarray(overlays.page(pixel, guess, truth, task.columns))
    panel = page[:, page.shape[1] * 3 // 4 :]
    assert (panel == overlays._RED).all(axis=-1).any()
    perfect = np.asarray(overlays.page(pixel, truth, truth, task.columns))[: 14 + 240]
    assert not (perfect == overlays._RED).all(axis=-1).any()
    assert (perfect == overlays._GREEN).all(axis=-1).any()
    assert overlays.listed(truth, task.columns) == "sky, road, 2 ball"


def test_pictures_to_predict_on_need_no_maps() -> None:
    task = task_of()
    model, data, guide = ready(task)
    batch = next(
        iter(replace(data, maps={kind: value * 0 + 255 for kind, value in data.maps.items()}).eval_batches(2))
    )
    with torch.no_grad():
        maps = task.scores(model.eval(), batch[0], guide)
    assert len(task.described(maps)) == 2
    assert len(task.prediction_files(batch, maps, ["one.png", "two.png"])) == 8


def test_predicted_maps_are_read_back_as_they_are(tmp_path: Path) -> None:
    """Also more objects than a byte can count."""
    task = task_of()
    _, data, _ = ready(task)
    maps = torch.stack(batch_of(data)[1:], dim=1)
    maps = maps[maps[:, 2].flatten(1).any(dim=1)][:1]
    maps[0, 0, :20, :16], maps[0, 2, :20, :16] = 4, 0
    maps[0, 1, :20, :16] = torch.arange(320).reshape(20, 16)
    maps[0, :, 23] = torch.tensor([[VOID], [-1], [0]])
    files = task.prediction_files(batch_of(data), maps, ["one.png"])
    files["one-image.png"] = as_png(Image.fromarray(data.pixel_NCHW[0].permute(1, 2, 0).numpy()))
    for name, file in files.items():
        folder = tmp_path / "train" / name.removeprefix("one-").removesuffix(".png")
        folder.mkdir(parents=True)
        (folder / "one.png").write_bytes(file)
    again = task.read(f"folder:{tmp_path}", "train")
    for kind, value in zip((LABEL, INSTANCE, PART), maps[0], strict=True):
        assert torch.equal(again.maps[kind][0].long(), value)


def test_without_scipy_training_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    task = task_of()
    model, data, guide = ready(task)
    with pytest.raises(MissingExtraError, match=r"pip install 'fednc\[panoptic\]'"):
        task.load_train("streets:images=2,test=2", None, None)  # a client is told before round one
    with pytest.raises(MissingExtraError, match=r"pip install 'fednc\[panoptic\]'"):
        task.loss(model, batch_of(data), guide)
