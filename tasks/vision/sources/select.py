"""Data specs: `digits`, `npz:PATH`, `folder:PATH`, `hf:ID_OR_PATH`; and plain paths to predict on.

Called by the task. Chooses the reader and checks that the images have the run's channels and size.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.data_spec import DataSpec, parse_spec
from fednc.common.tasks.tensor_data import UNLABELLED, hold_out_index
from fednc.tasks.vision.dataset import as_unit_range
from fednc.tasks.vision.options import ImageOptions
from fednc.tasks.vision.sources import arrays, files, hub
from fednc.tasks.vision.sources.folders import as_path
from fednc.tasks.vision.sources.images import Images, Purpose
from fednc.tasks.vision.sources.labels import quoted

SPECS = "digits, npz:PATH, folder:PATH or hf:ID_OR_PATH"
READERS: dict[str, Callable[[DataSpec, Purpose, ImageOptions], Images]] = {
    "digits": arrays.read_digits,
    "npz": arrays.read_npz,
    "folder": files.read_folder,
    "hf": hub.read_hub,
}
NAMED = frozenset({"npz", "hf"})  # kinds whose labels may be integers without names
_CHUNK = 1024  # images to resize at a time; limits the memory
TEST_SEED = 0  # for `evaluate.test_share`: the same for every run and on every machine


def read(text: str, purpose: Purpose, options: ImageOptions, test_share: float = 0.0) -> Images:
    """The images of data spec `text` for training or test.

    Args:
        test_share: `evaluate.test_share`; divides data without a test part.

    Raises:
        DataError: the data is missing, unreadable, or does not have this run's classes and shapes; the message
            names the spec. Or test data was requested, but all of it may be training data.
        MissingExtraError: the source needs a package that is not installed.
    """
    spec = parse_data(text)
    images = _checked(READERS[spec.kind](spec, purpose, options), spec.source, options)
    images = images if images.has_test else _divided(images, purpose, test_share, spec.source)
    return _with_notes(images.of_owner(), options)


def read_input(text: str, options: ImageOptions, test_share: float = 0.0) -> Images:
    """Images to predict on: a data spec (its test part), or the path of an image, a folder or an .npz.

    Data without a test part gives all of its images, with a note, unless `evaluate.test_share` divides it.

    Raises:
        DataError: as `read`.
    """
    spec = parse_spec(text)
    path = as_path(spec.source)
    if not path.exists():
        if spec.kind not in READERS:
            raise DataError(f"{text}: not an existing file or folder, and not a data spec ({SPECS})")
        images = READERS[parse_data(text).kind](spec, "test", options)
    elif path.is_dir():
        images = files.read_any_folder(spec, path, options)
    elif path.suffix.lower() == ".npz":
        images = _npz_input(replace(spec, kind="npz", place=str(path), has_colon=True), path, options)
    else:
        images = files.read_files([path], torch.tensor([UNLABELLED]), options, text)
    images = _checked(images, text, options)
    if images.has_test or bool((images.label_N == UNLABELLED).all()):
        return images.of_owner()
    if test_share > 0:
        return _divided(images, "test", test_share, text).of_owner()
    return replace(
        images.of_owner(),
        notes=(
            *images.notes,
            "the data has no test part: these are all of its images, including those trained on",
        ),
    )


def parse_data(text: str) -> DataSpec:
    """Parse a spec for one of the readers. Raises DataError if none fits, or it has options of other kinds."""
    spec = parse_spec(text)
    if (
        spec.kind not in READERS
        or bool(spec.place) == (spec.kind == "digits")
        or (spec.has_colon and not spec.place)
    ):
        raise DataError(f"data {text!r}: expected {SPECS}")
    if spec.class_names and spec.kind not in NAMED:
        raise DataError(f"data {text!r}: class-names are for npz and hf; {spec.kind} has its own names")
    if unknown := sorted(set(spec.columns) - {"image", "label"}):
        raise DataError(f"data {text!r}: columns must be image=NAME, label=NAME or both, not {unknown[0]}=...")
    if spec.columns and spec.kind not in NAMED:
        raise DataError(f"data {text!r}: columns are for npz and hf; {spec.kind} has none")
    if spec.only and spec.kind != "npz":
        raise DataError(f"data {text!r}: `only` is for npz; {spec.kind} has no columns to choose by")
    return spec


def _npz_input(spec: DataSpec, path: Path, options: ImageOptions) -> Images:
    images = arrays.read_npz(spec, "test", options, labels_needed=False)
    return replace(images, names=tuple(f"{path}[{i}]" for i in range(len(images.label_N))))


def _divided(images: Images, purpose: Purpose, share: float, source: str) -> Images:
    """The training or test part that `evaluate.test_share` makes from data without a test part.

    The same images on every machine with the same data, so test images are not used for training anywhere.
    """
    if purpose == "train":
        return images if share in (0, 1) else _note_share(images, "left for the test", share, take_test=False)
    if share == 0:
        raise DataError(
            f"{source} has no test part, and its {len(images.label_N)} images may be training data, so scores on "
            "them would mean nothing. Set evaluate.test_share, e.g. 0.2, to test on that share, which clients "
            "then leave out (1: all of it is test data, and nobody trains on it). Or use data with a test part: "
            "x_test and y_test in an .npz, a folder `test` beside `train`, or a split `test`."
        )
    return images if share == 1 else _note_share(images, "used for the test", share, take_test=True)


def _note_share(images: Images, words: str, share: float, *, take_test: bool) -> Images:
    rest, held = hold_out_index(images.label_N.numpy(), share, TEST_SEED)
    note = f"{len(held)} of {len(images.label_N)} images {words} (evaluate.test_share = {share:g})"
    chosen = images.select(held if take_test else rest)
    if len(chosen.label_N) == 0:
        raise DataError(
            f"evaluate.test_share = {share:g} of {len(images.label_N)} images leaves none; use more data"
        )
    return replace(chosen, notes=(*images.notes, note))


def _with_notes(images: Images, options: ImageOptions) -> Images:
    """Add notes: which of the run's classes have no examples, and how many images have none of its classes."""
    counts = torch.bincount(images.label_N[images.label_N != UNLABELLED], minlength=len(options.classes))
    missing = [name for name, count in zip(options.classes, counts.tolist(), strict=False) if not count]
    unknown = int((images.label_N == UNLABELLED).sum())
    notes = (
        *((f"no examples for {len(missing)} of the run's classes: {quoted(missing)}",) if missing else ()),
        *((f"{unknown} images of classes that the run does not have yet",) if unknown else ()),
    )
    return replace(images, notes=(*images.notes, *notes))


def _checked(images: Images, source: str, options: ImageOptions) -> Images:
    count, channels, height, width = images.pixel_NCHW.shape
    if count == 0:
        raise DataError(f"{source}: no images in it")
    if channels != options.channels:
        raise DataError(
            f"{source}: images have {channels} channels, but this run's have {options.channels} (task.channels). "
            "Convert the data: only its owner knows how to convert between grey and colour."
        )
    if (height, width) == (options.size, options.size):
        return images
    if options.resize:
        return replace(images, pixel_NCHW=_resized(images.pixel_NCHW, options.size))
    raise DataError(
        f"{source}: images are {height}x{width}, but this run's are {options.size}x{options.size} "
        "(task.size). Set task.resize = true, resize the arrays, or give the images as a folder; those are "
        "resized automatically."
    )


def _resized(pixel_NCHW: Tensor, size: int) -> Tensor:
    """The images at another size, as bytes if they are: bilinear with antialiasing, aspect ratio not kept."""

    def one(chunk_NCHW: Tensor) -> Tensor:
        out = F.interpolate(
            as_unit_range(chunk_NCHW), (size, size), mode="bilinear", antialias=True, align_corners=False
        )
        return (out * 255).round().clamp(0, 255).byte() if chunk_NCHW.dtype == torch.uint8 else out

    return torch.cat([one(chunk) for chunk in pixel_NCHW.split(_CHUNK)])
