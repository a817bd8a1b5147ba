"""Reads clouds: `npz:PATH`, `folder:PATH` with one subfolder per class, `shapes`; and single files to predict on.

Called by the task. Every cloud is centred and scaled to radius 1, since files use any unit, and thinned out or
filled up to the run's number of points. Nothing is turned here.

Legend: N clouds, P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import DataError, MissingExtraError
from fednc.common.seeds import derive
from fednc.common.tasks import npz_files
from fednc.common.tasks.api import Purpose
from fednc.common.tasks.data_spec import DataSpec, parse_spec
from fednc.common.tasks.tensor_data import UNLABELLED, hold_out_index
from fednc.tasks.pointcloud import shapes

SPECS = "npz:PATH, folder:PATH, shapes:COUNT or parts:COUNT"
FEWEST_POINTS = 16  # fewer describe no form
SHAPES, MOST_SHAPES = 240, 100_000  # clouds of `shapes` and `parts` without a count, and at most
TEST_SEED = 0  # for `evaluate.test_share`: the same for every run and on every machine
TABLES, MESHES = frozenset({".xyz", ".txt", ".pts"}), frozenset({".ply", ".off", ".obj", ".stl", ".glb"})
PARTS = ("train", "test")

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Clouds:
    """Clouds as a reader found them.

    Attributes:
        point_NP3: centred, with radius 1.
        labels: the class name of each; None if unknown.
        part_NP: for each point the place of its class in `classes`, or `UNLABELLED`; None if points have none.
        classes: class names in the data's own order.
        has_test: whether the data says itself which clouds are for the test.
        names: where each came from.
    """

    point_NP3: Tensor
    labels: tuple[str, ...] | None = None
    part_NP: Tensor | None = None
    classes: tuple[str, ...] = ()
    has_test: bool = False
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def select(self, index: Array) -> Clouds:
        """The clouds at `index`."""
        return replace(
            self,
            point_NP3=self.point_NP3[torch.from_numpy(index)],
            labels=None if self.labels is None else tuple(self.labels[i] for i in index),
            part_NP=None if self.part_NP is None else self.part_NP[torch.from_numpy(index)],
            names=tuple(self.names[i] for i in index) if self.names else (),
        )


def read(text: str, purpose: Purpose, points: int, test_share: float = 0.0) -> Clouds:
    """The clouds of data spec `text` for a purpose.

    Args:
        points: points of a cloud.
        test_share: `evaluate.test_share`; divides data without a test part.

    Raises:
        DataError: the data is missing or unreadable, or a cloud is none.
        MissingExtraError: a mesh needs a package that is not installed.
    """
    spec = parse_spec(text)
    readers = {"npz": _read_npz, "folder": _read_folder, "shapes": _read_shapes, "parts": _read_parts}
    if spec.kind in readers:
        found = readers[spec.kind](spec, purpose, points)
    elif purpose == "input" and Path(text).exists():
        found = _read_place(Path(text), points)
    else:
        raise DataError(f"data {text!r}: expected {SPECS}")
    if found.has_test or (found.labels is None and found.part_NP is None):
        return found
    return _divided(found, purpose, test_share, text)


def _divided(found: Clouds, purpose: Purpose, share: float, text: str) -> Clouds:
    if purpose == "input" and share == 0:
        return replace(
            found, notes=(*found.notes, "no test part: these are all clouds, including those trained on")
        )
    if purpose == "test" and share == 0:
        raise DataError(
            f"{text} has no test part, and its {len(found.point_NP3)} clouds may be training data. Set "
            "evaluate.test_share, e.g. 0.2, or give data with a test part: an array `train` of true and false in "
            "an .npz, or a folder `test` beside `train`."
        )
    groups = found.labels or ("",) * len(found.point_NP3)
    _, number_N = np.unique(np.array(groups), return_inverse=True)
    rest, held = hold_out_index(number_N.astype(np.int64), share, TEST_SEED)
    return found.select(rest if purpose == "train" else held)


# ---- arrays ----------------------------------------------------------------------------------------------------


def _read_npz(spec: DataSpec, purpose: Purpose, points: int) -> Clouds:
    """`points` [N, P, 3] with `label` [N] or `point_label` [N, P], `train` (bool) and `classes`.

    Or x_train, y_train, x_test, y_test, where y is [N] or [N, P].
    """
    try:
        file = npz_files.read_npz(spec.place)
    except FileNotFoundError as e:
        raise DataError(f"{spec.source}: no such file") from e
    except Exception as e:  # any error of the parser means the same
        raise DataError(f"{spec.source}: not a readable .npz without pickled objects: {e}") from e
    has_test = "train" in file or "x_test" in file
    part = "test" if purpose != "train" and has_test else "train"
    key, label_key = ("points", "label") if "points" in file else (f"x_{part}", f"y_{part}")
    label_key = "point_label" if key == "points" and "point_label" in file else label_key
    if key not in file:
        raise DataError(
            f"{spec.source}: expected an array `points` [N, P, 3], or `x_train`; it has {', '.join(sorted(file))}"
        )
    values, label, names = file[key], file.get(label_key), file.get("name")
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype.kind not in "fiu":
        raise DataError(
            f"{spec.source}: `{key}` is {values.dtype} {list(values.shape)}, expected numbers [N, P, 3], "
            "coordinates last"
        )
    if key == "points" and "train" in file:
        chosen = _train_mask(file["train"], len(values), spec) == (part == "train")
        values = values[chosen]
        label, names = (None if x is None or len(x) != len(chosen) else x[chosen] for x in (label, names))
    where = [f"{spec.source}[{i}]" for i in range(len(values))]
    classes = spec.class_names or (
        npz_files.texts(file["classes"], f"{spec.source}: classes") if "classes" in file else ()
    )
    found = Clouds(
        point_NP3=_stacked([_normal(x, points, at) for x, at in zip(values, where, strict=True)], points),
        classes=classes,
        has_test=has_test,
        names=tuple(map(str, names)) if names is not None and names.shape == (len(values),) else tuple(where),
    )
    if label is not None and label.ndim == 2:
        part_NP = _part_numbers(label, values.shape[:2], classes, spec.source)
        order_P = torch.from_numpy(_chosen(values.shape[1], points))
        return replace(found, part_NP=part_NP[:, order_P])
    if label is not None:
        return replace(found, labels=_label_names(label, classes, len(values), spec.source))
    return found


def _part_numbers(values: Array, shape: tuple[int, ...], classes: Sequence[str], source: str) -> Tensor:
    """Classes of points as places in `classes`; a negative number means unlabelled."""
    if values.shape != shape or values.dtype.kind not in "iu":
        raise DataError(
            f"{source}: labels of points are {values.dtype} {list(values.shape)}, "
            f""
            f"expected whole numbers {list(shape)}"
        )
    if not classes:
        raise DataError(
            f"{source}: classes of points are numbers without names. Add an array `classes`, or "
            "--class-names a,b,c"
        )
    if values.size and int(values.max()) >= len(classes):
        raise DataError(f"{source}: labels go up to {values.max()}, but {len(classes)} have names")
    return torch.from_numpy(values.astype(np.int64)).clamp(min=UNLABELLED)


def _train_mask(values: Array, count: int, spec: DataSpec) -> Array:
    if values.shape != (count,) or values.dtype != np.bool_:
        raise DataError(
            f"{spec.source}: `train` is {values.dtype} {list(values.shape)}, expected bool [{count}], "
            "one for each cloud"
        )
    return values


def _label_names(values: Array, classes: Sequence[str], count: int, source: str) -> tuple[str, ...]:
    """Labels as names: texts as they are, numbers by the data's own `classes` or those of the owner."""
    if values.shape != (count,) or values.dtype.kind not in "USiu":
        raise DataError(f"{source}: labels are {values.dtype} {list(values.shape)}, expected one per cloud")
    if values.dtype.kind in "US":
        return tuple(map(str, values))
    if not classes:
        return tuple(str(int(value)) for value in values)
    if count and not 0 <= int(values.min()) <= int(values.max()) < len(classes):
        raise DataError(
            f"{source}: labels go from {values.min()} to {values.max()}, but {len(classes)} have names"
        )
    return tuple(classes[int(value)] for value in values)


# ---- files -----------------------------------------------------------------------------------------------------


def _read_folder(spec: DataSpec, purpose: Purpose, points: int) -> Clouds:
    """PLACE/train/CLASS/* and PLACE/test/CLASS/*, or PLACE/CLASS/*."""
    root = Path(spec.place).expanduser()
    if not root.is_dir():
        raise DataError(f"{spec.source}: no such folder")
    has_test = all((root / part).is_dir() for part in PARTS)
    used = root / ("train" if purpose == "train" else "test") if has_test else root
    found = {folder.name: _files_in(folder) for folder in sorted(used.iterdir()) if folder.is_dir()}
    pairs = [(path, name) for name, paths in found.items() for path in paths]
    if not pairs:
        raise DataError(
            f"{spec.source}: no clouds in subfolders of {used.name}. Expected one subfolder per class, with "
            f"{', '.join(sorted(TABLES | MESHES))} in it."
        )
    return Clouds(
        point_NP3=_stacked([read_file(path, points) for path, _ in pairs], points),
        labels=tuple(name for _, name in pairs),
        classes=tuple(found),
        has_test=has_test,
        names=tuple(str(path) for path, _ in pairs),
    )


def _read_place(path: Path, points: int) -> Clouds:
    """A file, or the files of a folder, to predict on."""
    if path.suffix.lower() == ".npz":
        return _read_npz(parse_spec(f"npz:{path}"), "input", points)
    paths = list(_files_in(path)) if path.is_dir() else [path]
    if not paths:
        raise DataError(f"{path}: no clouds in it ({', '.join(sorted(TABLES | MESHES))})")
    return Clouds(
        point_NP3=_stacked([read_file(one, points) for one in paths], points),
        labels=None,
        names=tuple(map(str, paths)),
    )


def _files_in(folder: Path) -> Sequence[Path]:
    return [
        p for p in sorted(folder.iterdir()) if p.suffix.lower() in TABLES | MESHES and not p.name.startswith(".")
    ]


def read_file(path: Path, points: int) -> Tensor:
    """[P, 3] from one file, centred and scaled. Raises DataError, MissingExtraError."""
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return _normal(_table(path), points, str(path))
    if suffix in MESHES:
        return _normal(_mesh(path, points), points, str(path))
    raise DataError(f"{path}: not a point cloud by its suffix; expected {', '.join(sorted(TABLES | MESHES))}")


def _table(path: Path) -> Array:
    """One point per line, x y z first; commas or spaces."""
    try:
        lines = path.read_text(encoding="utf-8").replace(",", " ").splitlines()
        table: Array = np.loadtxt(lines, ndmin=2)
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read as a table of x y z ({e})") from e
    if table.shape[1] < 3:
        raise DataError(f"{path}: {table.shape[1]} columns, expected x y z")
    return table[:, :3]


def _mesh(path: Path, points: int) -> Array:
    """Points of a scan, or points drawn evenly from the surface of a mesh."""
    try:
        import trimesh
    except ImportError as e:
        raise MissingExtraError("trimesh", "pointcloud", f"{path.suffix} files") from e
    try:
        loaded: Any = trimesh.load(path, process=False)
        if isinstance(loaded, trimesh.Scene):
            loaded = loaded.to_geometry()
        if len(getattr(loaded, "faces", ())):
            drawn, _ = trimesh.sample.sample_surface(loaded, max(points, FEWEST_POINTS), seed=0)
            return np.asarray(drawn)
        return np.asarray(loaded.vertices)
    except Exception as e:  # any error of a parser means the same
        raise DataError(f"{path}: not a readable {path.suffix} file ({type(e).__name__}: {e})") from e


def _read_shapes(spec: DataSpec, purpose: Purpose, points: int) -> Clouds:
    count = _count(spec)
    part = "train" if purpose == "train" else "test"
    point_NP3, labels = shapes.make(count, points, part)
    normal = [_normal(x, points, f"shapes[{i}]") for i, x in enumerate(point_NP3.numpy())]
    return Clouds(
        point_NP3=_stacked(normal, points),
        labels=tuple(labels),
        classes=shapes.FORM_NAMES,
        has_test=True,
        names=tuple(f"shapes[{i}]" for i in range(count)),
    )


def _read_parts(spec: DataSpec, purpose: Purpose, points: int) -> Clouds:
    count = _count(spec)
    point_NP3, part_NP = shapes.make_parts(count, points, "train" if purpose == "train" else "test")
    normal = [_normal(x, points, f"parts[{i}]") for i, x in enumerate(point_NP3.numpy())]
    order_P = torch.from_numpy(_chosen(points, points))
    return Clouds(
        point_NP3=_stacked(normal, points),
        part_NP=part_NP[:, order_P],
        classes=shapes.PART_NAMES,
        has_test=True,
        names=tuple(f"parts[{i}]" for i in range(count)),
    )


def _count(spec: DataSpec) -> int:
    if spec.place and not spec.place.isdecimal():
        raise DataError(f"data {spec.text!r}: expected {spec.kind} or {spec.kind}:COUNT")
    count = int(spec.place or SHAPES)
    if not 0 < count <= MOST_SHAPES:
        raise DataError(f"data {spec.text!r}: from 1 to {MOST_SHAPES} clouds can be made")
    return count


# ---- one cloud -------------------------------------------------------------------------------------------------


def _normal(values: Array, points: int, where: str) -> Tensor:
    """float32 [P, 3]: thinned out or filled up to `points`, centred on its mean, radius 1."""
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise DataError(f"{where}: point {row} is {values[row].tolist()}. Remove points that are not finite.")
    if len(values) < FEWEST_POINTS:
        raise DataError(f"{where}: {len(values)} points, at least {FEWEST_POINTS} are needed")
    chosen = values[_chosen(len(values), points)].astype(np.float64)
    chosen -= chosen.mean(axis=0)
    radius = math.sqrt(float((chosen**2).sum(axis=1).max()))
    if not radius > 0:
        raise DataError(f"{where}: all points are the same")
    return torch.from_numpy((chosen / radius).astype(np.float32))


def _chosen(given: int, points: int) -> Array:
    """Which of `given` points a cloud of `points` has: all of them before any is repeated.

    Any order of points may mean something, so never the first ones of a larger file.
    """
    return np.resize(np.random.default_rng(derive(0, "points", given)).permutation(given), points)


def _stacked(clouds: list[Tensor], points: int) -> Tensor:
    return torch.stack(clouds) if clouds else torch.zeros(0, points, 3)
