"""The segmentation task as a whole: contract, runs, exported models, what it says of bad data, what people see."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fednc
from fednc.cli.main import app as command
from fednc.common.errors import ConfigError, DataError
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.model_export import load
from fednc.common.tasks.api import Part
from fednc.common.tasks.evaluation import evaluation_batches
from fednc.common.tasks.round_guide import guide_at
from fednc.tasks.dense.maps import VOID
from fednc.tasks.dense.models import at_size
from fednc.testing import TaskContract
from support.segmentation_tasks import CLASSES, guide_of, segmentation_task

SMALL = {"classes": list(CLASSES), "size": [16, 16], "width": 8, "memory_pixels": 64}
DATA = "scenes:images=12,test=6,objects=2"


class TestPlain(TaskContract):
    task = "segmentation"
    data = DATA
    options: ClassVar = SMALL
    tables: ClassVar = {"frame": {"dim": 8}, "method": {"name": "fednc"}, "train": {"batch": 4}}


class TestCeCo(TaskContract):
    task = "segmentation"
    data = DATA
    options: ClassVar = {**SMALL, "ceco": 0.4, "ceco_trainable": True, "crop": [12, 12], "flip": True}
    tables: ClassVar = {"frame": {"dim": 8}, "method": {"name": "fedavg"}, "train": {"batch": 4}}


RUN: dict[str, Any] = {
    "task": {"name": "segmentation", **SMALL, "ceco": 0.4, "ceco_memory": 0.5},
    "method": {"name": "fedavg", "readout": "discriminant"},
    "frame": {"dim": 8},
    "train": {"optimizer": "adamw", "lr": 0.01, "batch": 4},
    "rounds": {"total": 2, "min_clients": 2},
    "evaluate": {"test": DATA, "batch": 4},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    sites = {name: f"scenes:images=12,objects=2,site={i}/2" for i, name in enumerate(("anna", "bert"))}
    fednc.run(RUN, sites, device="cpu", progress=False, folder=folder)
    return folder


def test_a_run_exports_a_model_without_the_branch_and_shows_geometry_and_groups(finished: Path) -> None:
    model = load(finished)
    assert not [key for key in model.state_dict() if "centres" in key]
    assert model.metric_DD is not None
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["metric"]["name"] == "miou"
    assert {"miou", "pixel_accuracy", "nc2_std"} <= set(summary)
    shown = sorted(path.name for path in (finished / "examples").iterdir())
    assert shown == ["pictures.png", "round-000001-pictures.png", "round-000002-pictures.png"]
    assert (finished / "examples" / shown[0]).read_bytes() == (finished / "examples" / shown[2]).read_bytes()
    with Image.open(finished / "examples" / "pictures.png") as page:
        assert page.size[0] > 4 * 160


def test_predict_repeats_the_runs_metrics_and_writes_overlays(finished: Path, tmp_path: Path) -> None:
    arguments = [
        "predict",
        str(finished),
        DATA,
        "--out",
        str(tmp_path / "out"),
        "--json",
        str(tmp_path / "found.json"),
    ]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "found.json").read_text())
    rounds = json.loads((finished / "rounds.json").read_text())
    assert found["metrics"]["miou"] == rounds[-1]["test"]["miou"]
    assert found["examples"] == len(found["predictions"]) == 6
    assert "miou of each class" in result.output
    counted = dict(zip(CLASSES, segmentation_task().load_test(DATA).counts["pixels"].tolist(), strict=True))
    rows = {line.split()[0]: line.split()[1:] for line in result.output.splitlines() if line.strip()}
    assert {name: int(rows[name][0]) for name in CLASSES} == counted
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 12
    model, data = load(finished), segmentation_task(memory_pixels=64).load_test(DATA)
    (batch,) = evaluation_batches(model, data, 6)
    guess = model(batch[0]).argmax(dim=1)
    with Image.open(tmp_path / "out" / "test_scene_3-labels.png") as labels:
        assert np.array_equal(np.asarray(labels), guess[3].numpy())
    table = np.zeros((4, 4), int)
    np.add.at(table, (batch[1].numpy().ravel(), guess.numpy().ravel()), 1)
    with np.errstate(invalid="ignore"):
        iou = np.diag(table) / (table.sum(0) + table.sum(1) - np.diag(table))
    assert found["metrics"]["miou"] == pytest.approx(np.nanmean(iou), abs=1e-12)


def test_overlays_show_the_prediction_and_the_mistakes() -> None:
    task = segmentation_task()
    pixel_BCHW = torch.zeros(1, 3, 16, 16)
    label_BHW = torch.zeros(1, 16, 16, dtype=torch.int64)
    label_BHW[0, 8:] = VOID
    score_BKHW = torch.zeros(1, 4, 16, 16)
    score_BKHW[:, 1, :, 8:] = 1.0  # wrong in the right half; the lower half is void
    files = task.prediction_files((pixel_BCHW, label_BHW), score_BKHW, ["some/where/street one.png"])
    assert set(files) == {"street_one-overlay.png", "street_one-labels.png"}
    page = np.asarray(Image.open(io.BytesIO(files["street_one-overlay.png"])))
    mistakes = page[14 : 14 + 160, -164:-4]
    assert (mistakes[:80, :80] == (60, 60, 60)).all()
    assert (mistakes[:80, 80:] == (220, 40, 40)).all()
    assert not mistakes[80:].any()
    (row,) = task.described(score_BKHW)
    assert row["classes"] == "wall 50%, floor 50%"


def test_a_picture_without_labels_is_predicted_without_metrics(finished: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((33, 21, 3), 90, np.uint8)).save(tmp_path / "one.png")
    result = CliRunner().invoke(command, ["predict", str(finished), str(tmp_path / "one.png")])
    assert result.exit_code == 0, result.output
    assert "labelled examples" not in result.output


def pictures_in(folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    random = np.random.default_rng(1)
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (*size, 3)).astype(np.uint8)).save(folder / name)
    return folder


def test_predictions_have_the_size_of_the_pictures_and_each_its_own_files(finished: Path, tmp_path: Path) -> None:
    sizes = {"a.png": (33, 21), "a.jpg": (60, 90), "b.png": (16, 16), "c.tif": (8, 12)}
    folder, out = pictures_in(tmp_path / "in", sizes), tmp_path / "out"
    result = CliRunner().invoke(command, ["predict", str(finished), str(folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "8 files in" in result.output
    assert "labelled examples" not in result.output
    model, task = load(finished), segmentation_task()
    data = task.load_input(str(folder))
    stems = {"a.jpg": "a_jpg", "a.png": "a_png", "b.png": "b", "c.tif": "c"}
    assert len(list(out.iterdir())) == 2 * len(stems)
    with torch.no_grad():
        score = model(next(data.eval_batches(4))[0])  # at the size of the run, as metrics are made
    for number, (name, stem) in enumerate(stems.items()):
        with Image.open(out / f"{stem}-labels.png") as labels:
            found = np.asarray(labels)
        assert found.shape == sizes[name]
        guess = at_size(score[number : number + 1], sizes[name]).argmax(dim=1)[0].numpy()
        assert np.array_equal(found, guess), name


def test_truth_is_shown_at_the_size_of_the_pictures(finished: Path, tmp_path: Path) -> None:
    spec = written(tmp_path / "in", (48, 40), (48, 40), value=3)
    out = tmp_path / "out"
    result = CliRunner().invoke(command, ["predict", str(finished), spec, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "on 2 labelled examples" in result.output
    with Image.open(out / "road_1-labels.png") as labels, Image.open(out / "road_1-overlay.png") as page:
        assert labels.size == (40, 48)
        assert page.width == 4 * (4 * 40 + 4)  # picture, prediction, truth, mistakes, each enlarged four times


def test_with_tiles_pictures_are_predicted_at_their_own_size(tmp_path: Path) -> None:
    folder = pictures_in(tmp_path, {"a.png": (40, 57), "b.png": (12, 20)})
    seen: list[tuple[int, ...]] = []
    for tile in (0, 24):
        task = segmentation_task(tile=tile, overlap=8)

        def model(pixel_BCHW: torch.Tensor, task: Any = task) -> torch.Tensor:
            seen.append(tuple(pixel_BCHW.shape[2:]))
            scores: torch.Tensor = task.scores(task.build_model().eval(), pixel_BCHW, guide_of(task))
            return scores

        batches = list(task.load_input(str(folder)).display_batches(2))
        outputs = [task.displayed(model, batch) for batch in batches]  # type: ignore[arg-type]
        assert [tuple(each.shape[2:]) for each in outputs] == [(40, 57), (12, 20)]
        assert [tuple(each[1].shape) for each in batches] == [(1, 40, 57), (1, 12, 20)]
    assert seen == [(16, 16), (16, 16), (40, 57), (12, 20)]


# ---- bad data, as `fednc check` says it


def written(
    folder: Path, picture: tuple[int, int] = (16, 16), label: tuple[int, int] = (16, 16), value: int = 1
) -> str:
    """A folder with two training pictures; the second one's label has this size and a pixel of this value."""
    for name in ("image", "label"):
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(2):
        pixels = random.integers(0, 255, (*picture, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "train" / "image" / f"road_{number}.png")
        labels = np.zeros(label if number else picture, np.uint8)
        labels[0, 0], labels[-1, -1] = (value if number else 1), 255
        Image.fromarray(labels).save(folder / "train" / "label" / f"road_{number}.png")
    return f"folder:{folder}"


def checked(tmp_path: Path, *data: str) -> Any:
    run_file = tmp_path / "run.toml"
    run_file.write_text(
        f'[task]\nname = "segmentation"\nclasses = {json.dumps(list(CLASSES))}\nsize = [16, 16]\nwidth = 8\n'
        '[method]\nname = "fedavg"\n[frame]\ndim = 8\n'
    )
    given = [part for one in data for part in ("--data", one)]
    return CliRunner().invoke(command, ["check", str(run_file), *given])


def problem(result: Any) -> str:
    assert result.exit_code != 0
    return " ".join(f"{result.exception} {result.output}".split())


def test_check_counts_pixels_and_pictures_by_class(tmp_path: Path) -> None:
    result = checked(tmp_path, written(tmp_path / "a"))
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split()[1:] for line in result.output.splitlines() if line.strip()}
    assert rows["wall"] == ["508", "2"]
    assert rows["floor"] == ["2", "2"]
    assert "no pixel of 2 of the run's classes: 'disc', 'square'" in result.output


def test_check_counts_by_site(tmp_path: Path) -> None:
    label = np.zeros((3, 16, 16), np.uint8)
    label[0], label[1] = 1, 2
    picture = np.zeros((3, 16, 16, 3), np.uint8)
    sites = np.array(["north", "south", "south"])
    np.savez(tmp_path / "a.npz", x_train=picture, y_train=label, site_train=sites, classes=np.array(CLASSES))
    result = checked(tmp_path, f"npz:{tmp_path / 'a.npz'}")
    assert "pixels, south" in result.output
    one = checked(tmp_path, f"npz:{tmp_path / 'a.npz'}?only=site=north")
    rows = {line.split()[0]: line.split()[1:] for line in one.output.splitlines() if line.strip()}
    assert rows["floor"] == ["256", "1"]
    assert "sites in this part: north, south" in problem(
        checked(tmp_path, f"npz:{tmp_path / 'a.npz'}?only=site=east")
    )


def test_a_label_of_another_size_is_named(tmp_path: Path) -> None:
    told = problem(checked(tmp_path, written(tmp_path / "a", label=(16, 12))))
    assert "road_1.png: the label map is 16x12, but its picture is 16x16 (height x width)" in told


def test_an_unknown_label_value_is_named(tmp_path: Path) -> None:
    told = problem(checked(tmp_path, written(tmp_path / "a", value=77)))
    assert "unknown label value 77 in train/image/road_1.png" in told
    assert "0 to 3 ('wall', 'floor', 'disc', 'square'), and 255 is void" in told


def test_a_value_whose_name_is_no_class_is_named_and_may_be_void(tmp_path: Path) -> None:
    spec = written(tmp_path / "a", value=2)
    (tmp_path / "a" / "classes.txt").write_text("wall\nfloor\nghost\n")
    assert "label value 2 in train/image/road_1.png is 'ghost', which is not in this run" in problem(
        checked(tmp_path, spec)
    )
    assert segmentation_task(void=["ghost"]).load_train(spec, None, None).count_K.tolist() == [508, 1, 0, 0]


def test_a_class_that_no_site_has_is_an_error(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a"), written(tmp_path / "b", value=2)
    told = problem(checked(tmp_path, first, second))
    assert "no site has an example of 1 of the run's classes: 'square'" in told
    third = written(tmp_path / "c", value=3)
    assert checked(tmp_path, first, second, third).exit_code == 0


@pytest.mark.parametrize("purpose", ["train", "test"])
def test_data_without_a_labelled_pixel_is_refused(purpose: str, tmp_path: Path) -> None:
    """It would count as much as other clients, with a loss of 0."""
    arrays = {f"x_{part}": np.zeros((2, 16, 16, 3), np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": np.full((2, 16, 16), VOID, np.uint8) for part in ("train", "test")}
    np.savez(tmp_path / "a.npz", **arrays, **labels)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="not one pixel has a label"):
        segmentation_task().read(f"npz:{tmp_path / 'a.npz'}", purpose)  # type: ignore[arg-type]
    assert segmentation_task().load_input(f"npz:{tmp_path / 'a.npz'}").examples == 2
    assert "not one pixel" in problem(checked(tmp_path, f"npz:{tmp_path / 'a.npz'}"))


def test_missing_maps_and_pictures_are_named(tmp_path: Path) -> None:
    spec = written(tmp_path / "a")
    (tmp_path / "a" / "train" / "label" / "road_0.png").unlink()
    with pytest.raises(DataError, match=r"no label map for road_0.png"):
        segmentation_task().load_train(spec, None, None)
    with pytest.raises(DataError, match="has no folder image/"):
        segmentation_task().load_train(f"folder:{tmp_path}", None, None)
    with pytest.raises(DataError, match="has no test part"):
        segmentation_task().load_test(written(tmp_path / "b"))
    (tmp_path / "a" / "train" / "image" / "road_1.png").write_bytes(b"no picture")
    (tmp_path / "a" / "train" / "label" / "road_0.png").write_bytes(b"no label")
    with pytest.raises(DataError, match=r"2 of 2 pictures cannot be used(.|\n)*road_1.png"):
        segmentation_task().load_train(spec, None, None)


def test_files_are_resized_and_labels_keep_their_values(tmp_path: Path) -> None:
    data = segmentation_task().load_train(written(tmp_path / "a", (33, 50), (33, 50), value=3), None, None)
    assert data.pixel_NCHW.shape == (2, 3, 16, 16)
    assert set(data.maps["label"].unique().tolist()) <= {0, 1, 3, VOID}


def test_arrays_of_another_size_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 8, 9, 3), np.uint8), y_train=np.zeros((2, 8, 9), np.uint8))
    with pytest.raises(DataError, match=r"pictures are 8x9, but this run's are 16x16"):
        segmentation_task().load_train(f"npz:{tmp_path / 'a.npz'}", None, None)
    np.savez(
        tmp_path / "b.npz", x_train=np.zeros((2, 16, 16, 3), np.uint8), y_train=np.zeros((2, 16, 8), np.uint8)
    )
    with pytest.raises(DataError, match=r"\(16x8\), but there are 2 pictures of 16x16"):
        segmentation_task().load_train(f"npz:{tmp_path / 'b.npz'}", None, None)


# ---- splits and packing


def test_a_split_by_site_gives_each_client_its_site(tmp_path: Path) -> None:
    task = segmentation_task()
    whole = task.load_train(DATA, None, None)
    sites = ("x", "y", "z") * 4
    arrays = task.pack(dataclasses.replace(whole, sites=sites), task.load_test(DATA))
    np.savez(tmp_path / "data.npz", **arrays)
    spec = task.packed_spec(tmp_path / "data.npz")
    split = task.Split(kind="iid", parts=3, by_site=True)
    for number in range(3):
        part = task.load_train(spec, Part(number, 3), split)
        assert torch.equal(part.pixel_NCHW, whole.pixel_NCHW[number::3])
        assert torch.equal(part.maps["label"], whole.maps["label"][number::3])
    with pytest.raises(DataError, match=r"3 sites \(x, y, z\), but split.parts = 2"):
        task.load_train(spec, Part(0, 2), task.Split(kind="iid", parts=2, by_site=True))


def test_rehearsal_through_the_projection_is_refused() -> None:
    with pytest.raises(ConfigError, match="before the projection"):
        segmentation_task({"name": "fednc", "rehearsal": 1.0, "readout": "vertex"})


@pytest.mark.parametrize("method", ["fedavg", "fednc", "fedlc", "fedetf", "fedntd", "moon", "scaffold"])
def test_every_kind_of_method_has_a_finite_loss(method: str) -> None:
    task = segmentation_task({"name": method})
    model = task.build_model()
    guide = guide_of(task)
    companions = {name: task.build_model() for name in ("global", "previous")}
    guide = guide_at(task, guide.etf_KD, memory_of(task), 1, count_K=torch.ones(4, dtype=torch.int64))
    guide = dataclasses.replace(guide, companions=companions)
    batch = next(task.load_train(DATA, None, None).eval_batches(4))
    loss, parts = task.loss(model, batch, guide)
    assert loss.isfinite()
    assert all(part.isfinite() for part in parts.values())


def memory_of(task: Any) -> Any:
    return ClassMemory.empty(4, task.memory_dim)
