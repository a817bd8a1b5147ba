"""Reads folders of picture files with maps of the same name beside them.

    PATH/{train,test}/image/NAME.png    the pictures; without `train` and `test`, PATH/image/
    PATH/{train,test}/label/NAME.png    grey or palette, the value is the label
    PATH/{train,test}/depth/NAME.png    16 bits, the share of 65535; 0 is unknown
    PATH/{train,test}/normals/NAME.png  colour, (value - 127.5) / 127.5 for right, down, towards the camera
    PATH/{train,test}/edges/NAME.png    grey: above half is a border; `saliency` alike. If all files of the folder
                                        have only the values 0, 1 and 255: 1 is a border, 255 is unknown
    PATH/{train,test}/instance/NAME.png grey, the number of the object; the largest value (255, 65535) is none
    PATH/classes.txt                    name of label value 0 in the first line, of 1 in the second, ...

Called by `select.py`. Files are resized to the run's size, labels without mixing values.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fednc.common.errors import DataError
from fednc.tasks.dense.maps import (
    DEPTH,
    EDGES,
    INSTANCE,
    LABEL,
    MAPS,
    NO_INSTANCE,
    NORMALS,
    PART,
    SALIENCY,
    VOID,
)
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.sources.pictures import Array, Part, Pictures, map_tensor, several
from fednc.tasks.dense.sources.pixels import in_colour, in_grey, nearest, resized_picture

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
MAX_PIXELS = 64_000_000  # a small file can declare a picture that fills all memory
IMAGE, CLASSES = "image", "classes.txt"
_READ = (LABEL, DEPTH, NORMALS, EDGES, INSTANCE, PART, SALIENCY)  # kinds of maps that are read from files


def read_folder(place: str, part: Part, options: DenseOptions) -> Pictures:
    """The pictures below `place`. Raises DataError that names the unusable ones."""
    root = Path(place).expanduser()
    has_test = (root / "test" / IMAGE).is_dir()
    base = _base(place, part, has_test=has_test)
    paths = pictures_in(base / IMAGE)
    stems = [path.stem for path in paths]
    kinds = [kind for kind in _READ if (base / kind).is_dir()]
    if kinds:
        by_stem(paths)
    there = [by_stem(pictures_in(base / kind)) for kind in kinds]
    beside = [_beside(base / kind, kind, paths, files) for kind, files in zip(kinds, there, strict=True)]
    found = read_files(paths, beside, kinds, options, place)
    return Pictures(
        pixel_NCHW=found[IMAGE],
        maps={kind: found[kind] for kind in kinds},
        value_names=value_names_in(root / CLASSES),
        names=tuple(str(path.relative_to(root)) for path in paths),
        sites=tuple(path.stem.partition("_")[0] for path in paths) if all("_" in p.stem for p in paths) else (),
        whole=tuple(partial(_whole, path) for path in paths),
        has_test=has_test,
        notes=tuple(note for files in there for note in left_out(files, stems, "no picture has that name")),
    )


def value_names_in(path: Path) -> tuple[str, ...] | None:
    """The names of label values in a text file, that of value 0 in its first line; None if there is no such file.

    Raises DataError: not in UTF-8, or a line without a name, since leaving it out would shift all names after it.
    """
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark in front, which is no part of a name
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not text in UTF-8 (byte {e.start + 1}); save it in that encoding") from e
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "" in names:
        line = names.index("")
        raise DataError(
            f"{path}: line {line + 1} is empty, but it names label value {line}. Write a name there, also for a "
            "value that no picture has"
        )
    return tuple(names)


def size_of_first(place: str) -> tuple[int, int]:
    """(height, width) of the first training picture below `place`. Raises DataError."""
    base = _base(place, "train", has_test=False)
    with open_picture(pictures_in(base / IMAGE)[0]) as picture:
        return picture.height, picture.width


def _base(place: str, part: Part, *, has_test: bool) -> Path:
    """The folder with `image/` and its maps beside it. Raises DataError."""
    root = Path(place).expanduser()
    if not root.is_dir():
        raise DataError(f"folder:{place}: no such folder")
    base = root / (part if has_test or part == "train" else "train")
    if not (base / IMAGE).is_dir():
        base = root
    if not (base / IMAGE).is_dir():
        raise DataError(f"folder:{place}: has no folder {IMAGE}/ or train/{IMAGE}/ with the pictures")
    return base


def read_loose(paths: Sequence[Path], options: DenseOptions) -> Pictures:
    """Pictures without labels, to predict on."""
    found = read_files(paths, [], [], options, str(paths[0].parent))
    whole = tuple(partial(_whole, path) for path in paths)
    return Pictures(pixel_NCHW=found[IMAGE], names=tuple(map(str, paths)), whole=whole, has_test=True)


def _whole(path: Path) -> Array:
    """uint8 [H, W, 3] of a picture at its own size. Raises DataError."""
    with open_picture(path) as picture:
        return np.asarray(in_colour(picture, path))


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder, by name. Raises DataError if there are none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: no pictures in it ({', '.join(sorted(SUFFIXES))})")
    return paths


def read_files(
    paths: Sequence[Path],
    beside: Sequence[Sequence[Path]],
    kinds: Sequence[str],
    options: DenseOptions,
    place: str,
) -> dict[str, torch.Tensor]:
    """Pictures (`IMAGE`) and maps by kind, each with one file per picture."""

    def one(index: int) -> tuple[list[Array], str]:
        try:
            with open_picture(paths[index]) as picture:
                given = picture.size
                values = [resized_picture(in_colour(picture, paths[index]), options.size)]
            for kind, files in zip(kinds, beside, strict=True):
                values.append(_map_of(files[index], kind, given, options.size))
        except DataError as e:
            return [], str(e)
        return values, ""

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        done = list(pool.map(one, range(len(paths))))
    bad = [problem for _, problem in done if problem]
    if bad:
        raise several(bad, len(paths), f"folder:{place}")
    stacked = [np.stack(column) for column in zip(*(values for values, _ in done), strict=True)]
    pixel_NCHW = torch.from_numpy(np.ascontiguousarray(stacked[0].transpose(0, 3, 1, 2)))
    size = (len(paths), *options.size)
    maps = {
        kind: map_tensor(kind, _yes_or_no(values) if kind in _BINARY else values, size, f"folder:{place}")
        for kind, values in zip(kinds, stacked[1:], strict=True)
    }
    return {IMAGE: pixel_NCHW, **maps}


def by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their names without endings. Raises DataError: two files have one name."""
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise DataError(
                f"{path.parent}: {found[path.stem].name} and {path.name} have one name, so nobody knows which one "
                "belongs to the files of this name in other folders. Remove or rename one of them."
            )
        found[path.stem] = path
    return found


def _beside(folder: Path, kind: str, paths: Sequence[Path], there: Mapping[str, Path]) -> list[Path]:
    """For each picture the file of the same name in the folder of a map."""
    missing = [path.name for path in paths if path.stem not in there]
    if missing:
        raise DataError(
            f"{folder}: no {kind} map for {missing[0]}"
            + (f" and {len(missing) - 1} more pictures" if len(missing) > 1 else "")
            + f". A map has the name of its picture; remove the folder {kind}/ if there are none."
        )
    return [there[path.stem] for path in paths]


def left_out(files: Mapping[str, Path], used: Collection[str], why: str) -> tuple[str, ...]:
    """A note on the files of a folder that nothing refers to. `used`: their names without endings."""
    paths = [files[stem] for stem in sorted(set(files) - set(used))]
    more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
    return (f"{paths[0].parent.name}/{paths[0].name}{more} left out: {why}",) if paths else ()


def open_picture(path: Path) -> Image.Image:
    """The picture in a file. Raises DataError: not a picture that can be decoded, or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of too many pixels, which is refused below
            image = Image.open(path, formats=FORMATS)
            if image.size[0] * image.size[1] > MAX_PIXELS:
                raise DataError(f"{path}: {image.size[0]}x{image.size[1]} pixels, the limit is {MAX_PIXELS:,}")
            image.load()
    except DataError:
        raise
    except Exception as e:  # any error of a decoder means the same
        raise DataError(f"{path}: not a picture that can be decoded ({e}). Replace or remove it.") from e
    return image


def _map_of(path: Path, kind: str, given: tuple[int, int], size: tuple[int, int]) -> Array:
    with open_picture(path) as image:
        if image.size != given:
            raise DataError(
                f"{path}: the {kind} map is {image.size[1]}x{image.size[0]}, but its picture is "
                f"{given[1]}x{given[0]} (height x width). Make the map in the picture's size."
            )
        return _DECODERS.get(kind, _as_numbers)(image, path, size)


def _as_numbers(image: Image.Image, path: Path, size: tuple[int, int]) -> Array:
    if image.mode not in ("L", "P", "1", "I;16", "I"):
        raise DataError(
            f"{path}: has colour mode {image.mode}, expected grey or palette, where the value is the label"
        )
    return nearest(np.asarray(image), size)


def _as_depth(image: Image.Image, path: Path, size: tuple[int, int]) -> Array:
    values = _as_numbers(image, path, size).astype(np.float32)
    return np.where(values > 0, values / (65535 if image.mode.startswith("I") else 255), np.nan).astype(np.float32)


def _as_normals(image: Image.Image, path: Path, size: tuple[int, int]) -> Array:
    if image.mode not in ("RGB", "RGBA", "P"):
        raise DataError(f"{path}: has colour mode {image.mode}, expected colour: right, down, towards the camera")
    values = nearest(np.asarray(image.convert("RGB")), size).astype(np.float32) / 127.5 - 1
    length = np.linalg.norm(values, axis=2, keepdims=True)
    return np.where(length > 0.1, values / np.maximum(length, 0.1), 0).astype(np.float32)


def _as_instances(image: Image.Image, path: Path, size: tuple[int, int]) -> Array:
    values = _as_numbers(image, path, size).astype(np.int64)
    return np.where(values == (65535 if image.mode.startswith("I") else 255), NO_INSTANCE, values)


def _as_grey(image: Image.Image, path: Path, size: tuple[int, int]) -> Array:
    """uint8; of more than 8 bits only whether a value is above half of them."""
    if not image.mode.startswith("I"):
        return nearest(np.asarray(in_grey(image, path)), size)
    values = _as_numbers(image, path, size)
    return (values if values.max() <= VOID else (values > 32767) * 255).astype(np.uint8)


def _yes_or_no(values_NHW: Array) -> Array:
    """0, 1 or `VOID` from the files of a folder, which are coded in that way or grey."""
    is_coded = bool((values_NHW == 1).any()) and bool(((values_NHW <= 1) | (values_NHW == VOID)).all())
    return values_NHW if is_coded else (values_NHW > 127).astype(np.uint8)


_BINARY = (EDGES, SALIENCY)
_DECODERS: dict[str, Callable[[Image.Image, Path, tuple[int, int]], Array]] = {
    DEPTH: _as_depth,
    NORMALS: _as_normals,
    INSTANCE: _as_instances,
    EDGES: _as_grey,
    SALIENCY: _as_grey,
}
assert set(_READ) <= set(MAPS)
