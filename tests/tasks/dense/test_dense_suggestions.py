"""What `fednc init` suggests for pictures with labels: a run file that the very same data can be read with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fednc.common.errors import DataError
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.preparation import read_data
from fednc.tasks.dense.suggest import suggest

CLASSES = ("road", "void", "sky")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of 300x200 pixels, larger than a suggestion."""
    draw = np.random.default_rng(1)
    for kind in ("image", "label"):
        (tmp_path / kind).mkdir()
    for number in range(3):
        label = draw.integers(0, len(CLASSES), (200, 300)).astype(np.uint8)
        Image.fromarray(draw.integers(0, 256, (200, 300, 3)).astype(np.uint8)).save(
            tmp_path / f"image/{number}.png"
        )
        Image.fromarray(label).save(tmp_path / f"label/{number}.png")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


@pytest.mark.parametrize("kind", ["folder", "npz", "scenes"])
def test_the_suggested_keys_read_the_data_and_normalise_it(kind: str, folder: Path) -> None:
    spec = {"folder": f"folder:{folder}", "npz": f"npz:{folder / 'a.npz'}", "scenes": "scenes:images=20"}[kind]
    draw = np.random.default_rng(2)
    arrays = {"x_train": draw.integers(0, 256, (4, 20, 28, 3)), "y_train": draw.integers(0, 3, (4, 20, 28))}
    np.savez(folder / "a.npz", **{key: value.astype(np.uint8) for key, value in arrays.items()})
    found = suggest(spec)
    options = DenseOptions.model_validate(found.options)
    data = read_data(spec, "train", options, len(options.classes))
    assert min(data.having_K) > 0
    pixels = next(iter(data.eval_batches(data.examples)))[0]
    assert pixels.mean(dim=(0, 2, 3)).abs().max() < 0.01
    assert (pixels.std(dim=(0, 2, 3)) - 1).abs().max() < 0.01


def test_void_is_no_class_and_large_files_are_reduced(folder: Path) -> None:
    found = suggest(f"folder:{folder}").options
    assert found["classes"] == ["road", "sky"]
    assert found["void"] == ["void"]
    assert found["size"] == [85, 128]


def test_pictures_without_labels_are_refused(folder: Path) -> None:
    for path in (folder / "label").iterdir():
        path.unlink()
    (folder / "label").rmdir()
    with pytest.raises(DataError, match="no labels"):
        suggest(f"folder:{folder}")
