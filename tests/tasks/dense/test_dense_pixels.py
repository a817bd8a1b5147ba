"""Pixels of picture files: 16 bits, transparency, and maps that stay where their pictures are when both shrink."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fednc.common.errors import DataError
from fednc.tasks.colorize.options import ColorizeOptions
from fednc.tasks.colorize.sources.folders import read_folder as read_pairs
from fednc.tasks.colorize.sources.pairs import resized_regions
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.sources.folders import read_folder
from fednc.tasks.dense.sources.pixels import in_colour, in_grey, nearest
from fednc.tasks.panoptic.sources.files import picture_of

GREY16 = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)  # from black to white


def ink(mode: str) -> Image.Image:
    """Black ink in the upper half of a transparent sheet, whose hidden colour is black too."""
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:4] = 255
    return Image.merge(mode, [*(Image.new("L", (8, 8)) for _ in mode[:-1]), Image.fromarray(alpha)])


def keyed(mode: str) -> Image.Image:
    """The same, where one value means transparent, as PNG files of these modes have it."""
    image = Image.new(mode, (8, 8))
    if mode == "P":
        image.putpalette(np.repeat(np.arange(256), 3).tolist())
    image.paste(7 if mode != "RGB" else (7, 7, 7), (0, 4, 8, 8))
    image.info["transparency"] = 7 if mode != "RGB" else (7, 7, 7)
    return image


@pytest.mark.parametrize(
    "image", [ink("RGBA"), ink("LA"), keyed("P"), keyed("L"), keyed("RGB")], ids=lambda x: x.mode
)
def test_what_is_transparent_is_white(image: Image.Image, tmp_path: Path) -> None:
    image.save(tmp_path / "ink.png")
    with Image.open(tmp_path / "ink.png") as opened:
        for found in (np.asarray(in_colour(opened, "ink.png")), np.asarray(in_grey(opened, "ink.png"))):
            assert not found[:4].any()
            assert (found[4:] == 255).all()


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_shades(ending: str, tmp_path: Path) -> None:
    Image.fromarray(GREY16).save(tmp_path / f"a.{ending}")
    with Image.open(tmp_path / f"a.{ending}") as opened:
        assert np.array_equal(np.asarray(in_grey(opened, "a")), GREY16 >> 8)
        assert np.array_equal(np.asarray(in_colour(opened, "a"))[..., 1], GREY16 >> 8)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pictures_of_32_bits_are_refused(kind: type, tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as opened, pytest.raises(DataError, match=r"a\.tif: has 32 bits a pixel"):
        in_grey(opened, tmp_path / "a.tif")


def test_readers_of_pictures_keep_16_bits(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    Image.fromarray(GREY16).save(tmp_path / "image" / "a.png")
    read = read_folder(str(tmp_path), "train", DenseOptions(classes=("a", "b"), size=(64, 64)))
    assert np.array_equal(read.pixel_NCHW[0, 0].numpy(), GREY16 >> 8)
    assert np.array_equal(picture_of(tmp_path / "image" / "a.png", (64, 64))[0][..., 0], GREY16 >> 8)


def test_line_art_on_a_transparent_sheet_is_dark_on_white(tmp_path: Path) -> None:
    for name in ("colour", "line"):
        (tmp_path / name).mkdir()
    Image.effect_noise((16, 16), 99).convert("RGB").point([*range(256)] + [0] * 512).save(
        tmp_path / "colour" / "a.png"
    )
    ink("LA").resize((16, 16), Image.Resampling.NEAREST).save(tmp_path / "line" / "a.png")
    options = ColorizeOptions(size=(16, 16), classes=())
    line = read_pairs(f"{tmp_path}", "train", options).line_N1HW[0, 0]
    assert not line[:8].any()
    assert (line[8:] == 255).all()


@given(have=st.integers(1, 90), wanted=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_a_resized_map_takes_the_middle_of_each_cell(have: int, wanted: int) -> None:
    """The pixel taken is at most half a pixel of the file away from the middle."""
    place = nearest(np.arange(have)[None], (1, wanted))[0]
    middle = (np.arange(wanted) + 0.5) * have / wanted
    assert (abs(place + 0.5 - middle) <= 0.5 + 1e-9).all()
    regions = resized_regions(torch.arange(have)[None, None], (1, wanted))
    assert np.array_equal(regions[0, 0].numpy(), place)


def test_a_map_of_its_own_size_stays_as_it_is() -> None:
    values = np.arange(35).reshape(5, 7)
    assert np.array_equal(nearest(values, (5, 7)), values)


WRITERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "label": lambda right: right.astype(np.uint8),
    "edges": lambda right: (right * 255).astype(np.uint8),
    "depth": lambda right: np.where(right, 60000, 10000).astype(np.uint16),
    "normals": lambda right: np.where(right[..., None], [255, 128, 128], [0, 128, 128]).astype(np.uint8),
}


def test_maps_stay_where_their_pictures_are(tmp_path: Path) -> None:
    """Vertical borders at every place of a cell of 8 pixels: on average no map is shifted against the pictures."""
    for number in range(16):
        right = (np.arange(320) >= 150 + number)[None].repeat(40, 0)
        files = {"image": np.repeat(right[..., None] * 255, 3, 2).astype(np.uint8)}
        files |= {kind: write(right) for kind, write in WRITERS.items()}
        for kind, values in files.items():
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / kind / f"{number:02}.png")
    found = read_folder(str(tmp_path), "train", DenseOptions(classes=("a", "b"), size=(8, 40)))
    border = 40 - found.pixel_NCHW[:, 0, 0].float().sum(dim=1) / 255
    left = {
        "label": found.maps["label"] == 0,
        "edges": found.maps["edges"] == 0,
        "depth": found.maps["depth"] < 0.5,
        "normals": found.maps["normals"][:, 0] < 0,
    }
    for kind, is_left in left.items():
        assert abs(float((is_left[:, 0].float().sum(dim=1) - border).mean())) < 0.1, kind
