"""Small image files of every kind, for the tests of image readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fednc.tasks.vision.options import ImageOptions

CLASSES = ("ant", "bee", "cat")


def options(**other) -> ImageOptions:
    return ImageOptions(**{"classes": CLASSES, "size": 8, "channels": 1, **other})


def picture(value: int, size: int = 8, mode: str = "L") -> Image.Image:
    return Image.new(mode, (size, size), value if mode == "L" else (value, 0, 0))


def write_folder(root: Path, names, size: int = 8) -> Path:
    """Class i of CLASSES has i + 1 images whose pixels are 10 (i + 1)."""
    for name in names:
        (root / name).mkdir(parents=True)
        i = CLASSES.index(name)
        for k in range(i + 1):
            picture(10 * (i + 1), size).save(root / name / f"{k}.png")
    return root


def write_npz(path: Path, **changed) -> Path:
    """Four grey images of classes 0, 1, 2, 0 of CLASSES. `changed` replaces arrays; None leaves one out."""
    plain = {"x_train": np.zeros((4, 8, 8), np.uint8), "y_train": np.array([0, 1, 2, 0]), "classes": CLASSES}
    values = {**plain, **changed}
    np.savez(path, **{key: value for key, value in values.items() if value is not None})
    return path
