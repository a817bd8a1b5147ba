"""`[task]` keys that fit data which is at hand: class names, size, colour, mean and standard deviation.

Called through the task by `fednc init`, before there is a run file. Guesses once; from then on the run file says.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fednc.common.errors import DataError
from fednc.common.tasks.image import arrays, files
from fednc.common.tasks.image.data import as_unit_range
from fednc.common.tasks.image.safe_files import open_image

LARGEST_GUESS = 64  # pixels; photographs are reduced to it, larger sizes are for their owner to choose
SAMPLE = 4096  # images that mean and standard deviation are taken from

Options = dict[str, Any]


def suggest(spec: str) -> Options:
    """Keys of `[task]` for the training images at `spec`.

    Raises:
        DataError: missing, unreadable, or a spec that nothing can be read off.
    """
    kind, _, place = spec.partition(":")
    readers = {"digits": _of_digits, "npz": _of_npz, "folder": _of_folder}
    if kind not in readers:
        raise DataError(f"data {spec!r}: class names can be read off digits, npz:PATH or folder:PATH only")
    return readers[kind](place)


def _of_digits(place: str) -> Options:
    del place
    names = [str(digit) for digit in range(10)]
    return {"classes": names, "size": 8, "channels": 1, "mean": [0.305], "std": [0.376]}


def _of_npz(place: str) -> Options:
    file = arrays.load_arrays(place)
    if "classes" in file:
        names = [str(name) for name in file["classes"]]
    else:
        names = [str(label) for label in range(int(arrays.pick(file, "y_train", place).max()) + 1)]
    pixel_NCHW = arrays.as_pixels(arrays.pick(file, "x_train", place), f"npz:{place}: x_train")
    sample_NCHW = as_unit_range(pixel_NCHW[:: max(1, len(pixel_NCHW) // SAMPLE)])
    return {
        "classes": names,
        "size": pixel_NCHW.shape[2],
        "channels": pixel_NCHW.shape[1],
        "mean": [round(value, 4) for value in sample_NCHW.mean(dim=(0, 2, 3)).tolist()],
        "std": [round(value, 4) for value in sample_NCHW.std(dim=(0, 2, 3)).tolist()],
    }


def _of_folder(place: str) -> Options:
    root = Path(place)
    root = root / "train" if (root / "train").is_dir() else root
    images = (
        {path.name: files.images_in(path) for path in sorted(root.iterdir()) if path.is_dir()}
        if root.is_dir()
        else {}
    )
    names = [name for name, found in images.items() if found]
    if not names:
        raise DataError(f"folder:{place}: no subfolders with images; expected one per class")
    with open_image(images[names[0]][0]) as first:
        channels, size = 1 if first.mode in files.GREY_MODES else 3, min(first.size)
    return {"classes": names, "size": min(size, LARGEST_GUESS), "channels": channels}
