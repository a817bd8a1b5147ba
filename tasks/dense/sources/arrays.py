"""Reads pictures with maps from .npz files: plain arrays, or the CamVid set as coded picture files.

Called by `select.py`. Plain arrays are not resized, since their author has chosen the size.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fednc.common.errors import DataError
from fednc.common.tasks import npz_files
from fednc.common.tasks.npz_files import texts
from fednc.tasks.dense.maps import EDGES, LABEL, MAPS, VOID
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.scenes import borders, next_to
from fednc.tasks.dense.sources.pictures import Array, Part, Pictures, map_tensor

CAMVID_CLASSES = (
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
    "void",
)
CAMVID_TEST = "Seq05VD"  # the sequence that no client has
_CAMVID_PARTS = ("train", "val", "test")
_FORMATS = ("PNG", "WEBP")


def load_arrays(place: str, kind: str) -> dict[str, Array]:
    """The arrays of an .npz by name. Raises DataError: missing, or not an .npz file."""
    path = Path(place).expanduser()
    if not path.is_file():
        raise DataError(f"{kind}:{place}: no such file; give the path of an .npz file")
    return npz_files.arrays_in(path, f"{kind}:{place}")


def read_npz(place: str, part: Part, options: DenseOptions) -> Pictures:
    """Arrays x_train [N, H, W, 3], y_train [N, H, W] and so on.

    Other maps are `depth_train`, `normals_train` and so on, by the names in `maps.MAPS`; `site_train` and
    `name_train` say where each picture comes from, `classes` names the label values.
    """
    del options
    source, file = f"npz:{place}", load_arrays(place, "npz")
    has_test = "x_test" in file
    suffix = "test" if part == "test" and has_test else "train"
    if f"x_{suffix}" not in file:
        there = ", ".join(sorted(file)) or "nothing"
        raise DataError(f"{source}: has no array 'x_{suffix}', only {there}; docs/segmentation.md names them all")
    pixel_NHWC = file[f"x_{suffix}"]
    if pixel_NHWC.ndim != 4 or pixel_NHWC.shape[3] != 3 or pixel_NHWC.dtype != np.uint8:
        raise DataError(
            f"{source}: x_{suffix} is {pixel_NHWC.dtype} {list(pixel_NHWC.shape)}, expected uint8 [N, H, W, 3]"
        )
    count, height, width = (int(side) for side in pixel_NHWC.shape[:3])
    keys = {kind: f"{'y' if kind == LABEL else kind}_{suffix}" for kind in MAPS}
    maps = {
        kind: map_tensor(kind, file[key], (count, height, width), f"{source}: {key}")
        for kind, key in keys.items()
        if key in file
    }
    return Pictures(
        pixel_NCHW=torch.from_numpy(np.ascontiguousarray(pixel_NHWC.transpose(0, 3, 1, 2))),
        maps=maps,
        value_names=texts(file["classes"], f"{source}: classes") if "classes" in file else None,
        names=_for_each(file, f"name_{suffix}", count, source) or tuple(f"{place}[{i}]" for i in range(count)),
        sites=_for_each(file, f"site_{suffix}", count, source),
        has_test=has_test,
    )


def read_camvid(place: str, part: Part, options: DenseOptions) -> Pictures:
    """CamVid as one .npz of coded pictures: test is sequence `CAMVID_TEST`, training is everything else.

    A site is a video sequence. Pictures and labels are resized to the run's size. The edges are the borders
    between labels; those of void are not known.
    """
    file = load_arrays(place, "camvid")
    missing = [key for p in _CAMVID_PARTS for key in (f"{p}_image", f"{p}_label", f"{p}_name") if key not in file]
    if missing:
        raise DataError(f"camvid:{place}: has no array {missing[0]!r}: not the CamVid set in this form")
    pixels, labels, names, sites = [], [], [], []
    for each in _CAMVID_PARTS:
        for index, name in enumerate(map(str, file[f"{each}_name"])):
            site = name.partition("_")[0]
            if (site == CAMVID_TEST) != (part == "test"):
                continue
            pixels.append(_coded(file, f"{each}_image", index, options.size, Image.Resampling.BILINEAR, place))
            labels.append(_coded(file, f"{each}_label", index, options.size, Image.Resampling.NEAREST, place))
            names.append(name)
            sites.append(site)
    return Pictures(
        pixel_NCHW=torch.from_numpy(np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2))),
        maps={
            LABEL: torch.from_numpy(np.stack(labels)),
            EDGES: torch.from_numpy(np.stack([_edges_of(label_HW) for label_HW in labels])),
        },
        value_names=CAMVID_CLASSES,
        names=tuple(names),
        sites=tuple(sites),
        has_test=True,
    )


def _edges_of(label_HW: Array) -> Array:
    """uint8 [H, W]: 1 on a border between labels, `VOID` where a void pixel takes part in it."""
    void_HW = (label_HW == CAMVID_CLASSES.index("void")) | (label_HW == VOID)
    edge_HW = borders(label_HW)
    edge_HW[void_HW | ((edge_HW == 1) & next_to(void_HW))] = VOID
    return edge_HW


def _coded(
    file: Mapping[str, Array], key: str, index: int, size: tuple[int, int], how: Image.Resampling, place: str
) -> Array:
    begin, end = file[f"{key}_offset"][index : index + 2]
    try:
        with Image.open(io.BytesIO(file[key][begin:end].tobytes()), formats=_FORMATS) as image:
            found = image.convert("L" if key.endswith("_label") else "RGB")
    except Exception as e:  # any error of a decoder means the same
        raise DataError(f"camvid:{place}: picture {index} of {key} cannot be decoded ({e})") from e
    return np.asarray(found if found.size == size[::-1] else found.resize(size[::-1], how))


def _for_each(file: Mapping[str, Array], key: str, count: int, source: str) -> tuple[str, ...]:
    if key not in file:
        return ()
    if file[key].shape != (count,):
        raise DataError(f"{source}: {key} has shape {list(file[key].shape)}, expected one value for each picture")
    return texts(file[key], f"{source}: {key}")
