"""The point cloud task: averaging turned weights, what evaluation says of rotations, data and its errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import fednc
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError, DataError
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Part
from fednc.tasks.pointcloud import readers, rotations, shapes
from fednc.tasks.pointcloud.cloud_task import CloudTask
from fednc.tasks.pointcloud.dataset import CloudData
from fednc.tasks.pointcloud.network import aligned_layers
from fednc.testing import TaskContract, promises

FORMS = list(shapes.FORM_NAMES)
OPTIONS: dict[str, Any] = {
    "name": "pointcloud",
    "classes": FORMS,
    "points": 64,
    "centres": [16, 8],
    "neighbours": [8, 6],
    "widths": [16, 16, 32],
}


def _tables(**tables: Any) -> dict[str, Any]:
    return {"task": OPTIONS, "train": {"optimizer": "adam", "lr": 3e-3, "batch": 24}, **tables}


def _task(**options: Any) -> CloudTask:
    task = discovery.get(parse_run(_tables(task={**OPTIONS, **options})))
    assert isinstance(task, CloudTask)
    return task


def _model(task: CloudTask, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return task.build_model().eval()


class _Contract(TaskContract):
    task, data = "pointcloud", "shapes:40"
    options: ClassVar = {key: value for key, value in OPTIONS.items() if key != "name"}


class _OfPoints(TaskContract):
    task, data = "pointcloud", "parts:24"
    options: ClassVar = {
        **{key: value for key, value in OPTIONS.items() if key != "name"},
        "labels": "points",
        "classes": list(shapes.PART_NAMES),
        "memory_points": 40,
    }


@pytest.mark.parametrize(("name", "test"), [*promises(_Contract), *promises(_OfPoints)])
def test_it_keeps_every_promise(name: str, test: Any) -> None:
    """With a class for each cloud, and for each point."""
    test()


# ---- averaging ------------------------------------------------------------------------------------------------


def _average(*models: Any) -> dict[str, Tensor]:
    states = [model.state_dict() for model in models]
    return {key: torch.stack([state[key] for state in states]).mean(dim=0) for key in states[0]}


def test_clients_that_learnt_the_same_average_to_the_same_with_the_hook_alone() -> None:
    """One of two equal clients has its weights in another position, which is the same function."""
    task = _task()
    one = _model(task).double()
    other = copy.deepcopy(one)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in aligned_layers(other).values():
            turn_33 = rotations.of_quaternions(torch.randn(1, 4, generator=generator, dtype=torch.float64))[0]
            layer.weight.copy_(layer.weight @ turn_33)
        cloud_NP3 = readers.read("shapes:12", "test", 64).point_NP3.double()
        expected = one.features(cloud_NP3)
        assert torch.allclose(other.features(cloud_NP3), expected, atol=1e-10)

        def change(models: tuple[Any, ...]) -> float:
            averaged = copy.deepcopy(one)
            averaged.load_state_dict(_average(*models))
            return float((averaged.features(cloud_NP3) - expected).abs().max() / expected.abs().max())

        assert change((one, other)) > 0.05
        before = copy.deepcopy(other)
        task.before_upload(other, one.state_dict())
        assert torch.allclose(other.features(cloud_NP3), before.features(cloud_NP3), atol=1e-10)
        assert change((one, other)) < 1e-10


def test_the_hook_leaves_weights_without_alignment_as_they_are() -> None:
    """There a rotation of the weights is another function."""
    task = _task(align=False)
    model = _model(task)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    task.before_upload(model, _model(task, seed=1).state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---- training and evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("align", [True, False])
def test_a_federation_of_tilted_clients_is_as_good_on_turned_clouds_only_with_alignment(align: bool) -> None:
    """Three clients, each with one tilt of its own, trained under rotations about z."""
    tables = _tables(
        task={**OPTIONS, "align": align},
        rounds={"total": 6, "min_clients": 3},
        split={"parts": 3, "tilt_deg": 25.0},
        evaluate={"test": "shapes:120"},
    )
    result = fednc.run(tables, {f"c{i}": "shapes:240" for i in range(3)}, device="cpu", progress=False)
    test = result.history.rounds[-1].test
    gap = test["accuracy"] - test["accuracy_so3"]
    assert test["accuracy"] > 0.5
    if align:
        assert abs(gap) <= 1 / 120
        assert test["invariance_error"] < 1e-4
    else:
        assert gap > 0.2
        assert test["invariance_error"] > 0.1


def test_a_federation_learns_parts_and_rotations_change_none_of_them() -> None:
    """A class for every point; the memory's counts are those of the points that it is made of."""
    tables = _tables(
        task=dict(_OfPoints.options, name="pointcloud"),
        rounds={"total": 6, "min_clients": 2},
        train={"optimizer": "adam", "lr": 5e-3, "batch": 16},
        split={"parts": 2, "tilt_deg": 30.0},
        evaluate={"test": "parts:40"},
    )
    result = fednc.run(tables, {"a": "parts:120", "b": "parts:120"}, device="cpu", progress=False)
    test = result.history.rounds[-1].test
    constant = 0.5 / 3  # of the prediction that every point is of the shaft, which half the points are
    assert test["miou"] > 1.8 * constant
    assert test["miou_so3"] == pytest.approx(test["miou"], abs=2e-3)
    assert test["invariance_error"] < 1e-3
    assert {f"miou/{name}" for name in shapes.PART_NAMES} <= set(test)


def test_labels_stay_with_their_points_when_a_cloud_is_thinned_out_or_filled_up(tmp_path: Path) -> None:
    """Points above the middle are of one class; -1 is a point without a class."""
    for points in (40, 300):
        cloud = _cloud(points)
        part = (cloud[:, 2] > 0).astype(int)
        part[np.abs(cloud[:, 2]) < 0.1] = -1
        np.savez(tmp_path / "a.npz", points=cloud[None], point_label=part[None], classes=["low", "high"])
        options = {**OPTIONS, "labels": "points", "classes": ["high", "low"]}
        data = discovery.get(parse_run(_tables(task=options))).load_train(f"npz:{tmp_path / 'a.npz'}", None, None)
        assert isinstance(data, CloudData)
        height_P, label_P = data.point_NP3[0, :, 2], data.label_N[0]
        assert set(label_P.tolist()) == {-1, 0, 1}
        assert height_P[label_P == 1].max() < height_P[label_P == -1].min() + 1e-6
        assert height_P[label_P == -1].max() < height_P[label_P == 0].min() + 1e-6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"point_label": np.zeros((1, 39), int), "classes": ["a"]}, r"expected whole numbers \[1, 40\]"),
        ({"point_label": np.zeros((1, 40)), "classes": ["a"]}, "expected whole numbers"),
        ({"point_label": np.zeros((1, 40), int)}, "numbers without names"),
        ({"point_label": np.full((1, 40), 3), "classes": ["a"]}, "labels go up to 3"),
        ({"point_label": np.zeros((1, 40), int), "classes": ["banana"]}, "'banana' are not in the run"),
        ({}, "have no classes"),
    ],
)
def test_bad_labels_of_points_are_told(tmp_path: Path, arrays: Any, message: str) -> None:
    np.savez(tmp_path / "bad.npz", points=_cloud()[None], **arrays)
    with pytest.raises(DataError, match=message):
        _task(labels="points", classes=["a", "b"]).load_train(f"npz:{tmp_path / 'bad.npz'}", None, None)


def test_each_client_leans_in_its_own_way_and_the_test_data_does_not() -> None:
    """The tilt comes after every other rotation, in training and when the client evaluates."""
    task = discovery.get(parse_run(_tables(split={"parts": 2, "tilt_deg": 40.0})))
    parts = [task.load_train("shapes:40", Part(i, 2), task.run.split) for i in range(2)]
    tilts = []
    for part in parts:
        assert isinstance(part, CloudData)
        point_BP3, _, _ = next(part.eval_batches(64))
        upright_BP3 = rotations.turned(point_BP3, part.tilt_33.T)
        assert torch.allclose(upright_BP3[..., 2], part.point_NP3[..., 2], atol=1e-6)  # turned about z alone
        tilts.append(part.tilt_33)
    assert not torch.allclose(*tilts)
    test = task.load_test("shapes:40")
    assert isinstance(test, CloudData)
    assert torch.equal(test.tilt_33, torch.eye(3))


def test_training_turns_clouds_as_the_run_says_and_keeps_their_form() -> None:
    """`none` yields them as they are; `z` keeps heights; each kind keeps distances."""
    for kind in ("none", "z", "so3"):
        data = _task(train_rotation=kind).load_train("shapes:24", None, None)
        assert isinstance(data, CloudData)
        batches = list(data.train_batches(24, torch.Generator().manual_seed(0)))
        order_N = torch.randperm(24, generator=torch.Generator().manual_seed(0))
        still_NP3, moved_NP3 = data.point_NP3[order_N], batches[0][0]
        assert torch.allclose(torch.cdist(moved_NP3, moved_NP3), torch.cdist(still_NP3, still_NP3), atol=2e-3)
        assert torch.allclose(moved_NP3[..., 2], still_NP3[..., 2], atol=1e-6) == (kind != "so3")
        assert torch.allclose(moved_NP3, still_NP3) == (kind == "none")


# ---- data -----------------------------------------------------------------------------------------------------


def _cloud(points: int = 40, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(points, 3))


def test_every_format_gives_the_same_cloud_however_it_is_scaled_or_moved(tmp_path: Path) -> None:
    """An .npz, tables of text with spaces and commas, and a .ply; in any unit, at any place."""
    trimesh = pytest.importorskip("trimesh")
    points = _cloud().astype(np.float32).astype(np.float64)
    np.savez(tmp_path / "a.npz", points=points[None], label=np.array(["box"]))
    np.savetxt(tmp_path / "b.xyz", points * 1000 + 5, fmt="%.17g")
    np.savetxt(tmp_path / "c.txt", points * 0.001, delimiter=",", fmt="%.17g")
    trimesh.PointCloud(points).export(tmp_path / "d.ply")
    found = [
        readers.read(str(tmp_path / name), "input", 32).point_NP3[0]
        for name in ("a.npz", "b.xyz", "c.txt", "d.ply")
    ]
    for other in found[1:]:
        assert torch.allclose(other, found[0], atol=1e-5)
    assert torch.allclose(found[0].mean(dim=0), torch.zeros(3), atol=1e-6)
    assert float(found[0].norm(dim=1).max()) == pytest.approx(1)


def test_a_mesh_is_sampled_from_its_surface(tmp_path: Path) -> None:
    """Corners alone would say nothing of a box."""
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.box().export(tmp_path / "box.off")
    point_P3 = readers.read_file(tmp_path / "box.off", 200)
    assert point_P3.shape == (200, 3)
    assert len(torch.unique(point_P3.round(decimals=4), dim=0)) > 150


def test_folders_of_classes_with_and_without_a_test_part(tmp_path: Path) -> None:
    """PLACE/train/CLASS and PLACE/test/CLASS, or PLACE/CLASS with evaluate.test_share."""
    for part, count in (("train", 3), ("test", 2)):
        for name in ("box", "cone"):
            folder = tmp_path / "both" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                np.savetxt(folder / f"{i}.xyz", _cloud(seed=i))
    assert len(readers.read(f"folder:{tmp_path / 'both'}", "train", 32).point_NP3) == 6
    assert readers.read(f"folder:{tmp_path / 'both'}", "test", 32).labels == ("box", "box", "cone", "cone")
    one = f"folder:{tmp_path / 'both' / 'train'}"
    with pytest.raises(DataError, match="test_share"):
        readers.read(one, "test", 32)
    rest, held = readers.read(one, "train", 32, 0.34), readers.read(one, "test", 32, 0.34)
    assert (len(rest.point_NP3), len(held.point_NP3)) == (3, 3)
    assert set(rest.names).isdisjoint(held.names)


def test_clouds_with_fewer_or_more_points_are_filled_up_or_thinned_out() -> None:
    """A smaller cloud repeats points; a larger one is not cut off at the end."""
    small = readers._normal(_cloud(20), 32, "x")
    assert len(torch.unique(small, dim=0)) == 20
    line = np.zeros((1000, 3))
    line[:, 0] = np.arange(1000)
    thin = readers._normal(line, 100, "x")
    assert float(thin[:, 0].max() - thin[:, 0].min()) > 1.8


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: np.savez(p, points=np.full((1, 40, 3), np.nan), label=[0]), r"point 0 is \[nan"),
        (lambda p: np.savez(p, points=_cloud(3)[None], label=[0]), "3 points, at least 16"),
        (lambda p: np.savez(p, points=np.ones((1, 40, 3)), label=[0]), "all points are the same"),
        (lambda p: np.savez(p, points=np.ones((1, 3, 40)), label=[0]), "coordinates last"),
        (lambda p: np.savez(p, clouds=_cloud()[None]), "expected an array `points`"),
        (lambda p: np.savez(p, points=_cloud()[None], label=[0, 1]), "one per cloud"),
        (lambda p: np.savez(p, points=_cloud()[None], label=[5], classes=["box"]), "labels go from 5 to 5"),
        (lambda p: np.savez(p, points=_cloud()[None], label=["banana"]), "'banana' are not classes"),
        (lambda p: np.savez(p, points=_cloud()[None], label=["box"], train=[1]), "expected bool"),
        (lambda p: p.write_bytes(b"no zip"), "not a readable .npz"),
    ],
)
def test_bad_arrays_are_told_with_place_and_remedy(tmp_path: Path, write: Any, message: str) -> None:
    path = tmp_path / "bad.npz"
    write(path)
    with pytest.raises(DataError, match=message):
        _task().load_train(f"npz:{path}", None, None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xyz", "1 2\n" * 40, "2 columns"),
        ("a.xyz", "one two three\n" * 40, "cannot be read as a table"),
        ("a.ply", "ply\nnot really\n", "not a readable .ply"),
        ("a.jpg", "", "not a point cloud by its suffix"),
    ],
)
def test_bad_files_are_told_with_place_and_remedy(tmp_path: Path, name: str, text: str, message: str) -> None:
    pytest.importorskip("trimesh")
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        readers.read(str(path), "input", 32)


@pytest.mark.parametrize("spec", ["npz:/no/such.npz", "folder:/no/such", "shapes:many", "shapes:0", "elsewhere"])
def test_data_that_does_not_exist_is_an_error(spec: str) -> None:
    with pytest.raises(DataError):
        _task().load_train(spec, None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"centres": [100, 8]}, "centres"),
        ({"neighbours": [8, 40]}, "neighbours"),
        ({"align": False, "relative_frames": True}, "relative_frames"),
        ({"classes": ["a", "a"]}, "more than once"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _task(**options)
