"""Data specs: class names mapped by name, images that do not fit refused with a reason."""

from __future__ import annotations

import zlib
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image

from fednc.common.errors import DataError
from fednc.tasks.vision.options import ImageOptions
from fednc.tasks.vision.sources.select import read
from support.image_files import CLASSES, options, picture, write_folder, write_npz


def test_npz_labels_follow_the_names_in_any_order(tmp_path):
    truth = np.array([0, 1, 2, 2, 1])
    for order in permutations(range(3)):
        names = np.array([CLASSES[i] for i in order])
        stored = np.array([order.index(t) for t in truth], dtype=np.uint8)
        file = write_npz(tmp_path / "a.npz", x_train=np.zeros((5, 8, 8), np.uint8), y_train=stored, classes=names)
        assert read(f"npz:{file}", "train", options()).label_N.tolist() == truth.tolist()


def test_folder_labels_follow_the_names_whatever_their_order_in_the_run(tmp_path):
    root = write_folder(tmp_path / "d", CLASSES)
    for order in permutations(CLASSES):
        images = read(f"folder:{root}", "train", options(classes=order))
        value_N = images.pixel_NCHW[:, 0, 0, 0]
        assert [order[k] for k in images.label_N] == [CLASSES[v // 10 - 1] for v in value_N.tolist()]
        assert torch.bincount(images.label_N).tolist() == [CLASSES.index(name) + 1 for name in order]


def test_a_missing_class_is_normal(tmp_path):
    images = read(f"folder:{write_folder(tmp_path / 'd', ['cat'])}", "train", options())
    assert images.label_N.tolist() == [2, 2, 2]


def test_unknown_classes_list_both_sides(tmp_path):
    root = write_folder(tmp_path / "d", ["ant", "bee"])
    (root / "bee").rename(root / "wasp")
    file = write_npz(tmp_path / "a.npz", classes=np.array(["ant", "wasp", "cat"]))
    for spec in (f"folder:{root}", f"npz:{file}"):
        with pytest.raises(DataError) as e:
            read(spec, "train", options())
        assert "classes 'wasp' are not in this run" in str(e.value)
        assert "the run has 'ant', 'bee', 'cat'" in str(e.value)
        assert "The data has 'ant', " in str(e.value)


def test_unused_names_do_not_matter(tmp_path):
    file = write_npz(tmp_path / "a.npz", y_train=np.array([1, 1, 0, 0]), classes=np.array(["ant", "cat", "yak"]))
    assert read(f"npz:{file}", "train", options()).label_N.tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"y_train": np.array([0, 1, 3, 0])}, r"label 3 is outside 0\.\.2"),
        ({"y_train": np.array([0, -1, 1, 0])}, r"label -1 is outside"),
        (
            {"y_train": np.array([0, 1, 5, 0]), "classes": np.array(["ant"])},
            r"label 1 is outside 0\.\.0.*own list",
        ),
        ({"y_train": np.array([0.0, 1, 2, 0])}, "labels are float64"),
        ({"y_train": np.array([0, 1])}, "4 images in x_train, 2 labels in y_train"),
        ({"y_train": None}, "has no array 'y_train', only classes, x_train"),
        ({"x_train": None}, "has no array 'x_train'"),
        ({"x_train": np.zeros((4, 8, 8, 3), np.uint8)}, "have 3 channels, but this run's have 1"),
        ({"x_train": np.zeros((4, 9, 8), np.uint8)}, "are 9x8, but this run's are 8x8"),
        ({"x_train": np.zeros((4, 64), np.uint8)}, r"has shape \[4, 64\]"),
        ({"x_train": np.full((4, 8, 8), 255.0)}, "has values from 255 to 255"),
        ({"x_train": np.full((4, 8, 8), np.nan)}, "has values from nan"),
        ({"x_train": np.zeros((4, 8, 8), np.int32)}, "is int32, expected uint8"),
        ({"x_train": np.zeros((0, 8, 8), np.uint8), "y_train": np.zeros(0, np.uint8)}, "no images in it"),
        ({"x_train": np.array([None] * 4)}, "without pickled objects"),
    ],
)
def test_arrays_that_do_not_fit_say_so(tmp_path, changed, match):
    file = write_npz(tmp_path / "a.npz", **changed)
    with pytest.raises(DataError, match=match) as e:
        read(f"npz:{file}", "train", options())
    assert str(file) in str(e.value)


def test_a_file_that_is_not_an_npz_is_refused(tmp_path):
    file = tmp_path / "a.npz"
    np.savez_compressed(file, x_train=np.random.default_rng(0).random((9, 8, 8)))
    whole = file.read_bytes()
    np.save(tmp_path / "a.npy", np.zeros(3))
    scrambled = whole[:200] + bytes(1000) + whole[1200:]
    for content in (
        b"",
        b"no zip",
        b"PK\x03\x04 broken",
        whole[:900],
        scrambled,
        (tmp_path / "a.npy").read_bytes(),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npz: not a readable"):
            read(f"npz:{file}", "train", options())


def test_npz_test_part(tmp_path):
    file = write_npz(tmp_path / "b.npz", x_test=np.full((2, 8, 8), 0.5), y_test=np.array([2, 1]))
    test = read(f"npz:{file}", "test", options())
    assert test.label_N.tolist() == [2, 1]
    assert test.pixel_NCHW.dtype == torch.float32
    assert (test.pixel_NCHW == 0.5).all()


def test_channels_last_arrays_become_channels_first(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    images = read(f"npz:{write_npz(tmp_path / 'a.npz', x_train=x)}", "train", options(channels=3))
    np.testing.assert_array_equal(images.pixel_NCHW.numpy(), x.transpose(0, 3, 1, 2))


def test_folder_parts_and_sizes(tmp_path):
    write_folder(tmp_path / "d" / "train", CLASSES, size=20)
    write_folder(tmp_path / "d" / "test", ["bee"], size=5)
    assert len(read(f"folder:{tmp_path / 'd'}", "train", options()).label_N) == 6
    test = read(f"folder:{tmp_path / 'd'}", "test", options())
    assert test.label_N.tolist() == [1, 1]
    assert test.pixel_NCHW.shape == (2, 1, 8, 8)
    assert (test.pixel_NCHW == 20).all()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not an image that can be decoded"),
        (b"hello", "not an image that can be decoded"),
        (png_claiming(8, 8), "not an image that can be decoded"),
        (png_claiming(8001, 8000), "8001x8000 pixels, more than"),
        (png_claiming(10**6, 10**6), "bad.png"),
    ],
)
def test_an_image_that_does_not_decode_is_named(tmp_path, content, match):
    root = write_folder(tmp_path / "d", CLASSES)
    (root / "bee" / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=match) as e:
        read(f"folder:{root}", "train", options())
    assert str(root / "bee" / "bad.png") in str(e.value)


def test_truncated_image_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    (tmp_path / "ant").mkdir()
    for suffix in ("png", "jpg"):
        file = tmp_path / "ant" / f"half.{suffix}"
        Image.fromarray(noise).save(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(DataError, match=f"half.{suffix}: not an image"):
            read(f"folder:{tmp_path}", "train", options())
        file.unlink()


def test_grey_and_colour_are_not_mixed(tmp_path):
    (tmp_path / "ant").mkdir()
    picture(9, mode="RGB").save(tmp_path / "ant" / "a.png")
    assert read(f"folder:{tmp_path}", "train", options(channels=3)).pixel_NCHW[0, :, 0, 0].tolist() == [9, 0, 0]
    with pytest.raises(DataError, match=r"a.png: has colour mode RGB, but this run's images are grey"):
        read(f"folder:{tmp_path}", "train", options())
    picture(9).save(tmp_path / "ant" / "a.png")
    with pytest.raises(DataError, match="colour mode L, but this run's images are colour"):
        read(f"folder:{tmp_path}", "train", options(channels=3))


@pytest.mark.parametrize("spec", ["", "digit", "digits:", "digits:x", "npz", "npz:", "zip:a", "folder"])
def test_invalid_specs_are_refused(spec):
    with pytest.raises(DataError, match="expected digits, npz:PATH, folder:PATH"):
        read(spec, "train", options())


@pytest.mark.parametrize("spec", ["npz:gone.npz", "folder:gone", "hf:./gone"])
def test_missing_data_is_named(spec, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(DataError, match="gone"):
        read(spec, "train", options())


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "ant").mkdir()
    with pytest.raises(DataError, match="no images in subfolders"):
        read(f"folder:{tmp_path}", "train", options())


def test_digits_parts_are_disjoint_and_stratified():
    digits = options(classes=tuple("0123456789"))
    train, test = (read("digits", purpose, digits) for purpose in ("train", "test"))
    assert (len(train.label_N), len(test.label_N)) == (1437, 360)
    assert torch.bincount(test.label_N).min() >= 34
    assert torch.bincount(test.label_N).max() <= 37
    assert (train.pixel_NCHW.min(), train.pixel_NCHW.max()) == (0, 1)
    both = torch.cat([train.pixel_NCHW, test.pixel_NCHW]).flatten(1)
    assert len(both) == 1797
    reversed_names = options(classes=tuple("9876543210"))
    assert torch.equal(read("digits", "test", reversed_names).label_N, 9 - test.label_N)
    with pytest.raises(DataError, match="classes '3', '4'"):
        read("digits", "train", options(classes=tuple("01256789")))


def test_one_domain_of_a_file_is_one_client_and_the_division_is_that_of_the_whole_file(tmp_path):
    """`only` picks rows by another array; `columns` names arrays that are not called x_train and y_train."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 8, 8), dtype=np.uint8)
    label, domain = np.tile(["cat", "dog"], 20), np.repeat(np.arange(4), 10)
    np.savez(tmp_path / "d.npz", image=image, label=label, domain=domain)
    spec = f"npz:{tmp_path / 'd.npz'}?columns=image=image,label=label"
    two = ImageOptions(classes=("cat", "dog"), size=8, channels=1)
    assert torch.equal(
        read(f"{spec}&only=domain=2", "train", two).pixel_NCHW[:, 0], torch.from_numpy(image[20:30])
    )
    test = {row.numpy().tobytes() for row in read(spec, "test", two, 0.25).pixel_NCHW}
    parts = [read(f"{spec}&only=domain={d}", "train", two, 0.25).pixel_NCHW for d in range(4)]
    trained = {row.numpy().tobytes() for part in parts for row in part}
    assert len(test) == 10
    assert len(trained) == 30
    assert not test & trained, "the server tests on an image that a client of one domain trains on"
    with pytest.raises(DataError, match="no row has domain = '9'; there are 0, 1, 2, 3"):
        read(f"{spec}&only=domain=9", "train", two)
    with pytest.raises(DataError, match=r"has no array 'hospital' for `only`; there are domain, image, label"):
        read(f"{spec}&only=hospital=9", "train", two)
    with pytest.raises(DataError, match="`only` is for npz"):
        read("digits?only=domain=1", "train", two)
    with pytest.raises(DataError, match="only must be COLUMN=VALUE"):
        read(f"{spec}&only=domain", "train", two)
