"""Bad data is named, never guessed: small real files of every kind, read as a client reads them.

Each row is one mistake in data; it is refused with a message that names it, or left out and counted.
"""

from __future__ import annotations

import io
import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fednc.common.errors import DataError
from fednc.tasks.vision.graph_input import pixel_input
from fednc.tasks.vision.sources.select import read, read_input
from support.image_files import CLASSES, options, picture, write_folder, write_npz

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)


def animation(path: Path) -> None:
    picture(1).save(path, save_all=True, append_images=[picture(200), picture(90)])


def half_jpeg(path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(NOISE).save(whole, "jpeg")
    path.write_bytes(whole.getvalue()[:900])


def unreadable(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    picture(1).save(path)
    path.chmod(0)


BAD_IMAGES = {
    "0 bytes": ("a.png", lambda p: p.write_bytes(b""), "not an image that can be decoded"),
    "text": ("a.jpg", lambda p: p.write_text("hello"), "not an image that can be decoded"),
    "half a jpeg": ("a.jpg", half_jpeg, "not an image that can be decoded"),
    "animated gif": ("a.gif", animation, "contains 3 images"),
    "pages": ("a.tif", animation, "contains 3 images"),
    "16 bits": ("a.png", lambda p: Image.fromarray(NOISE.astype(np.uint16) * 256).save(p), "colour mode I;16"),
    "CMYK": (
        "a.jpg",
        lambda p: Image.new("CMYK", (8, 8)).save(p),
        "colour mode CMYK, but this run's images are grey",
    ),
    "palette": (
        "a.png",
        lambda p: picture(3).convert("P").save(p),
        "colour mode P, but this run's images are grey",
    ),
    "not ours to read": ("a.png", unreadable, "permission denied"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_an_image_that_cannot_be_used_is_named(tmp_path, case):
    name, write, words = BAD_IMAGES[case]
    root = write_folder(tmp_path / "d", CLASSES)
    write(root / "bee" / name)
    with pytest.raises(DataError, match=words) as e:
        read(f"folder:{root}", "train", options())
    assert str(root / "bee" / name) in str(e.value)


@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA"])
def test_colour_images_of_other_modes_are_converted(tmp_path, mode):
    (tmp_path / "ant").mkdir()
    Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode).save(tmp_path / "ant" / "a.tif")
    pixel_C = read(f"folder:{tmp_path}", "train", options(channels=3)).pixel_NCHW[0, :, 0, 0]
    assert pixel_C[0] > 250
    assert pixel_C[1:].max() < 5


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 3), ("P", 3), ("LA", 1), ("L", 1)])
def test_what_is_transparent_is_white(tmp_path, mode, channels):
    """Whatever colour lies below it."""
    (tmp_path / "ant").mkdir()
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    image.paste((9, 9, 9, 0), (0, 4, 8, 8))
    if "A" in mode:
        image.convert(mode).save(tmp_path / "ant" / "a.png")
    else:  # one value means transparent
        image.convert("L").convert(mode).save(tmp_path / "ant" / "a.png", transparency=9)
    pixel_CHW = read(f"folder:{tmp_path}", "train", options(channels=channels)).pixel_NCHW[0]
    assert (pixel_CHW[:, 4:] == 255).all()
    assert not pixel_CHW[:, :4].any()


def test_the_snippet_of_a_model_card_reads_what_clients_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ant").mkdir()
    for image, channels in ((Image.fromarray(NOISE), 1), (Image.fromarray(NOISE).convert("RGB"), 3)):
        for place in ("image.png", "ant/a.png"):
            image.save(place)
        found = {"np": np}
        exec("\n".join(pixel_input(options(channels=channels)).reading), found)
        pixel_CHW = read(f"folder:{tmp_path}", "train", options(channels=channels)).pixel_NCHW[0]
        assert np.array_equal(found["pixels"][0], pixel_CHW.permute(1, 2, 0).numpy())


def test_one_bad_image_does_not_hide_the_next_and_ten_are_enough(tmp_path):
    root = write_folder(tmp_path / "d", CLASSES)
    for k in range(3):
        (root / "cat" / f"bad{k}.png").write_bytes(b"")
    with pytest.raises(DataError, match="3 of 9 images cannot be used") as e:
        read(f"folder:{root}", "train", options())
    assert all(f"bad{k}.png" in str(e.value) for k in range(3))
    for k in range(3, 25):
        (root / "cat" / f"bad{k}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)25 of 31 images.*\n  \.\.\. and 15 more$") as e:
        read(f"folder:{root}", "train", options())
    assert len(str(e.value).splitlines()) == 12


LEFT_OUT = {
    "nested": (lambda r: nested(r / "bee" / "2021" / "may"), "1 images in nested folders"),
    "nested, empty": (lambda r: (r / "bee" / "2021").mkdir(), "1 nested folders without images"),
    "heic": (lambda r: (r / "bee" / "a.heic").write_bytes(b"x"), "1 files with the suffix .heic"),
    "no suffix": (lambda r: (r / "bee" / "README").write_bytes(b"x"), "suffix (none)"),
    "broken link": (lambda r: (r / "bee" / "l.png").symlink_to("gone.png"), "1 broken links"),
    "link to itself": (lambda r: (r / "bee" / "l.png").symlink_to("l.png"), "1 broken links"),
    "link to its parent": (lambda r: (r / "bee" / "up").symlink_to(".."), "nested folders"),
    "pipe": (lambda r: os.mkfifo(r / "bee" / "p.png"), "1 entries that are not files"),
    "loose image": (lambda r: picture(1).save(r / "a.png"), "1 loose images beside the class folders"),
    "loose text": (lambda r: (r / "notes.txt").write_text("x"), "1 files with the suffix .txt"),
    "empty class": (lambda r: (r / "yak").mkdir(), "class folders without a usable image: 'yak'"),
}


def nested(folder: Path) -> None:
    folder.mkdir(parents=True)
    picture(1).save(folder / "deep.png")


@pytest.mark.parametrize("case", LEFT_OUT)
def test_files_left_out_of_a_folder_are_counted_by_reason(tmp_path, case):
    add, words = LEFT_OUT[case]
    root = write_folder(tmp_path / "d", CLASSES)
    assert read(f"folder:{root}", "train", options()).notes == ()
    add(root)
    images = read(f"folder:{root}", "train", options())
    assert len(images.label_N) == 6
    assert any(words in note for note in images.notes), images.notes


@pytest.mark.parametrize("name", [".git", "__MACOSX", "bee/.thumbs", "bee/__MACOSX"])
def test_hidden_folders_and_files_are_ignored(tmp_path, name):
    root = write_folder(tmp_path / "d", CLASSES)
    (root / name).mkdir()
    (root / name / "a.png").write_bytes(b"no image")
    (root / "bee" / "._0.png").write_bytes(b"")
    (root / "bee" / ".DS_Store").write_bytes(b"")
    images = read(f"folder:{root}", "train", options())
    assert (len(images.label_N), images.notes) == (6, ())


def test_folders_beside_train_and_test_are_counted(tmp_path):
    write_folder(tmp_path / "train", CLASSES)
    write_folder(tmp_path / "val", CLASSES)
    images = read(f"folder:{tmp_path}", "train", options())
    assert images.notes == ("left out: 1 folders beside train/ and test/ (first: 'val')",)


def test_classes_without_examples_are_reported(tmp_path):
    images = read(f"folder:{write_folder(tmp_path / 'd', ['bee'])}", "train", options())
    assert images.notes == ("no examples for 2 of the run's classes: 'ant', 'cat'",)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        nested(tmp_path / name)
    images = read(f"folder:{tmp_path}", "train", options(classes=("bus", "train")))
    assert images.label_N.tolist() == [0, 1]
    assert len(images.names) == 2


def test_a_tilde_means_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "d", CLASSES)
    write_npz(tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    assert len(read("folder:~/d", "train", options()).label_N) == 6
    assert len(read("npz:~/A.NPZ", "train", options()).label_N) == 4
    assert len(read_input("~/A.NPZ", options()).label_N) == 4


NFC, NFD = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("ours", "theirs"), [(NFC, NFD), (NFD, NFC)])
def test_names_are_equal_in_every_unicode_form(tmp_path, ours, theirs):
    nested(tmp_path / "d" / theirs)
    file = write_npz(tmp_path / "a.npz", y_train=np.zeros(4, int), classes=[theirs])
    for spec in (f"folder:{tmp_path / 'd'}", f"npz:{file}"):
        assert set(read(spec, "train", options(classes=("ant", ours))).label_N.tolist()) == {1}


def test_one_name_in_two_forms_is_refused(tmp_path):
    for name in (NFC, NFD):
        nested(tmp_path / "d" / name)
    if len(list((tmp_path / "d").iterdir())) == 1:
        pytest.skip("this file system knows one form only")
    with pytest.raises(DataError, match="two Unicode forms"):
        read(f"folder:{tmp_path / 'd'}", "train", options(classes=(NFC, "ant")))


@pytest.mark.parametrize("name", ["Cat", "cat "])
def test_names_that_differ_in_case_or_spaces_are_not_matched(tmp_path, name):
    nested(tmp_path / name)
    with pytest.raises(DataError, match=f"'{name}' differs from 'cat' only in case or spaces"):
        read(f"folder:{tmp_path}", "train", options())


BAD_ARRAYS = {
    "classes = 3": ({"classes": np.array(3)}, r"class names are int64 \[\]"),
    "float names": ({"classes": np.array([0.1, 0.2, 0.3])}, "class names are float64"),
    "names twice": ({"classes": ["ant", "ant", "cat"]}, "'ant' occurs twice"),
    "names that are not text": ({"classes": np.array([b"\xff", b"bee", b"cat"])}, "not UTF-8"),
    "object names": ({"classes": np.array(["ant", None], object)}, "without pickled objects"),
    "object labels": ({"y_train": np.array([0, "a", None, 1], object)}, "without pickled objects"),
    "whole floats": ({"y_train": np.array([0.0, 1, 2, 0])}, r"y\.astype\('int64'\)"),
    "NaN": ({"y_train": np.array([0, np.nan, 2, 0])}, "labels are float64"),
    "bool": ({"y_train": np.array([True, False, True, False])}, "labels are bool"),
    "one-hot": ({"y_train": np.eye(4, 3, dtype=int)}, r"y\.argmax\(axis=1\)"),
    "from 1": ({"y_train": np.array([1, 2, 3, 1])}, "labels that start at 1, use y - 1"),
    "large": ({"y_train": np.array([0, 1, 3_000_002, 0])}, "label 3000002 is outside"),
    "unknown text": ({"y_train": np.array(["ant", "yak", "ant", "ant"])}, "'yak' are not in this run"),
    "channels first": ({"x_train": np.zeros((4, 3, 8, 8), np.uint8)}, r"x\.transpose\(0, 2, 3, 1\)"),
    "transparency": ({"x_train": np.zeros((4, 8, 8, 4), np.uint8)}, r"x\[\.\.\., :3\]"),
    "floats to 255": ({"x_train": np.linspace(0, 255, 256).reshape(4, 8, 8)}, "has values from 0 to 255"),
    "uint16": ({"x_train": np.zeros((4, 8, 8), np.uint16)}, "is uint16"),
    "complex": ({"x_train": np.zeros((4, 8, 8), complex)}, "is complex128"),
    "scalar": ({"x_train": np.array(3)}, r"has shape \[\]"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_an_array_that_cannot_be_used_is_named(tmp_path, case):
    changed, words = BAD_ARRAYS[case]
    with pytest.raises(DataError, match=words) as e:
        read(f"npz:{write_npz(tmp_path / 'a.npz', **changed)}", "train", options())
    assert "a.npz" in str(e.value)


@pytest.mark.parametrize(
    "changed",
    [
        {"y_train": np.array([[0], [1], [2], [0]])},
        {"y_train": np.array([0, 1, 2, 0], ">i8")},
        {"y_train": np.array([0, 1, 2, 0], np.uint64)},
        {"y_train": np.array(["ant", "bee", "cat", "ant"]), "classes": None},
        {"y_train": np.array([b"ant", b"bee", b"cat", b"ant"]), "classes": None},
        {"classes": np.array([b"ant", b"bee", b"cat"])},
        {"x_train": np.zeros((4, 8, 8), ">f8")},
        {"x_train": np.zeros((4, 8, 8), np.float16)},
        {"other": np.array([None], object)},
    ],
)
def test_unambiguous_arrays_are_read(tmp_path, changed):
    images = read(f"npz:{write_npz(tmp_path / 'a.npz', **changed)}", "train", options())
    assert images.label_N.tolist() == [0, 1, 2, 0]
    assert images.pixel_NCHW.dtype in (torch.uint8, torch.float32)
    assert bool(images.notes) == ("other" in changed)


def test_an_archive_without_the_arrays_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train", b"not an array")
    for place in ("a.npz", ""):
        with pytest.raises(DataError, match=r"'x_train' is not an array|is a folder or a device"):
            read(f"npz:{tmp_path / place}", "train", options())
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match="a folder or a device"):
        read(f"npz:{tmp_path / 'pipe.npz'}", "train", options())
