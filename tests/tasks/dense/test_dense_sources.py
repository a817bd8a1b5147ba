"""Readers of pictures with maps: folders with depth, normals and borders, coded sets, names of label values."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fednc.common.errors import DataError
from fednc.tasks.dense.maps import DEPTH, EDGES, INSTANCE, LABEL, MAPS, NO_INSTANCE, NORMALS, VOID
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.preparation import packed, read_data
from fednc.tasks.dense.scenes import SceneSettings, draw_scenes
from fednc.tasks.dense.sources.arrays import CAMVID_CLASSES
from fednc.tasks.dense.sources.folders import value_names_in
from fednc.tasks.dense.sources.pictures import map_tensor
from fednc.tasks.dense.sources.select import parsed, read, read_input

SETTINGS = SceneSettings(size=(20, 24), objects=3)
OPTIONS = DenseOptions(classes=SETTINGS.class_names, size=(20, 24))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scenes as files, as a camera and its annotators would write them."""
    for number, scene in enumerate(draw_scenes(SETTINGS, 2, 1, "train")):
        files = {
            "image": Image.fromarray(scene.pixel_HW3),
            LABEL: Image.fromarray(scene.label),
            DEPTH: Image.fromarray((scene.depth * 65535).round().astype(np.uint16)),
            NORMALS: Image.fromarray(((scene.normals.transpose(1, 2, 0) + 1) * 127.5).round().astype(np.uint8)),
            EDGES: Image.fromarray(scene.edges * 255),
        }
        for kind, image in files.items():
            (tmp_path / "train" / kind).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "train" / kind / f"site{number}_a.png")
    (tmp_path / "classes.txt").write_text("\n".join(SETTINGS.class_names) + "\n")
    return tmp_path


def test_a_folder_gives_the_maps_that_were_written(folder: Path) -> None:
    found = read(f"folder:{folder}", "train", OPTIONS)
    assert found.sites == ("site0", "site1")
    for number, scene in enumerate(draw_scenes(SETTINGS, 2, 1, "train")):
        assert np.array_equal(found.pixel_NCHW[number].permute(1, 2, 0), scene.pixel_HW3)
        assert np.array_equal(found.maps[LABEL][number], scene.label)
        assert np.array_equal(found.maps[EDGES][number], scene.edges)
        np.testing.assert_allclose(found.maps[DEPTH][number], scene.depth, atol=1e-4)
        np.testing.assert_allclose(found.maps[NORMALS][number], scene.normals, atol=0.01)
    for kind, values in found.maps.items():
        assert values.dtype == MAPS[kind].dtype


def test_a_line_without_a_name_does_not_shift_the_names_after_it(folder: Path) -> None:
    names = folder / "classes.txt"
    names.write_text("light wall\n\nfloor\n")
    with pytest.raises(DataError, match=r"classes.txt: line 2 is empty, but it names label value 1"):
        read(f"folder:{folder}", "train", OPTIONS)
    names.write_text("light wall\nfloor \n\n")
    assert value_names_in(names) == ("light wall", "floor")


def test_unknown_depth_is_nan(folder: Path) -> None:
    path = folder / "train" / DEPTH / "site1_a.png"
    values = np.asarray(Image.open(path)).astype(np.uint16).copy()
    values[3, 4] = 0
    Image.fromarray(values).save(path)
    depth = read(f"folder:{folder}", "train", OPTIONS).maps[DEPTH]
    assert depth.isnan().nonzero().tolist() == [[1, 3, 4]]


def test_labels_in_colours_are_refused(folder: Path) -> None:
    Image.new("RGB", (24, 20)).save(folder / "train" / LABEL / "site0_a.png")
    with pytest.raises(DataError, match=r"site0_a.png: has colour mode RGB, expected grey or palette"):
        read(f"folder:{folder}", "train", OPTIONS)


def test_one_site_of_a_folder(folder: Path) -> None:
    found = read(f"folder:{folder}?only=site=site1", "train", OPTIONS)
    assert found.names == ("train/image/site1_a.png",)


def test_names_are_text_in_utf_8_and_a_mark_in_front_is_no_part_of_them(folder: Path) -> None:
    names = folder / "classes.txt"
    names.write_bytes("\ufeffwände\nfloor\n".encode())
    assert value_names_in(names) == ("wände", "floor")
    for wrong in ("latin-1", "utf-16"):
        names.write_bytes("wände\nfloor\n".encode(wrong))
        with pytest.raises(DataError, match=r"classes\.txt: not text in UTF-8"):
            read(f"folder:{folder}", "train", OPTIONS)


@pytest.mark.parametrize("kind", ["image", LABEL])
def test_two_files_of_one_name_are_refused(folder: Path, kind: str) -> None:
    with Image.open(folder / "train" / kind / "site0_a.png") as image:
        image.save(folder / "train" / kind / "site0_a.bmp")
    with pytest.raises(DataError, match=rf"{kind}: site0_a.bmp and site0_a.png have one name"):
        read(f"folder:{folder}", "train", OPTIONS)


def test_maps_without_a_picture_are_left_out_with_a_note(folder: Path) -> None:
    (folder / "train" / "image" / "site1_a.png").unlink()
    found = read(f"folder:{folder}", "train", OPTIONS)
    assert len(found.names) == 1
    assert set(found.notes) == {
        f"{kind}/site1_a.png left out: no picture has that name" for kind in (LABEL, DEPTH, NORMALS, EDGES)
    }
    assert read_data(f"folder:{folder}", "train", OPTIONS, 5).notes[: len(found.notes)] == found.notes


GREY, CODED = np.tile([0, 255], (20, 12)), np.tile([0, 1], (20, 12))
HOLE = np.where(np.arange(20)[:, None] < 3, VOID, CODED)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (GREY, GREY, CODED),
        (GREY * 257, GREY, CODED),
        (CODED, CODED * 0, CODED),
        (HOLE, CODED * 0 + VOID, HOLE),  # 255 alone is unknown too, since its neighbour is coded
        (CODED, CODED * 200, CODED * 0),  # a 1 among grey values is nearly black
        (CODED * 300, GREY, CODED * 0),  # of 65535
        (CODED * 200, GREY // 255 * 90, CODED),  # as `fednc predict` writes probabilities
    ],
)
@pytest.mark.parametrize("kind", [EDGES, "saliency"])
def test_files_of_edges_are_grey_or_have_the_values_of_arrays(
    folder: Path, kind: str, first: np.ndarray, second: np.ndarray, expected: np.ndarray
) -> None:
    (folder / "train" / kind).mkdir(exist_ok=True)
    for number, values in enumerate((first, second)):
        image = Image.fromarray(values.astype(np.uint16 if values.max() > VOID else np.uint8))
        image.save(folder / "train" / kind / f"site{number}_a.png")
    found = read(f"folder:{folder}", "train", OPTIONS).maps[kind]
    assert np.array_equal(found[0], expected)


@pytest.mark.parametrize(("dtype", "none"), [(np.uint8, 255), (np.uint16, 65535)])
def test_the_largest_value_of_an_instance_file_is_none(folder: Path, dtype: type, none: int) -> None:
    values = np.zeros((20, 24), dtype)
    values[:5], values[5:9] = none, 7
    (folder / "train" / INSTANCE).mkdir()
    for number in range(2):
        Image.fromarray(values).save(folder / "train" / INSTANCE / f"site{number}_a.png")
    found = read(f"folder:{folder}", "train", OPTIONS).maps[INSTANCE]
    assert np.array_equal(found[0], np.where(values == none, NO_INSTANCE, values.astype(int)))


def test_normals_in_grey_are_refused(folder: Path) -> None:
    Image.new("L", (24, 20), 128).save(folder / "train" / NORMALS / "site0_a.png")
    with pytest.raises(DataError, match=r"site0_a.png: has colour mode L, expected colour"):
        read(f"folder:{folder}", "train", OPTIONS)


# ---- arrays


def arrays(tmp_path: Path, **changes: np.ndarray) -> str:
    pictures = np.zeros((2, 20, 24, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=pictures, **changes)  # type: ignore[arg-type]
    return f"npz:{tmp_path / 'a.npz'}"


BYTES = [kind for kind, form in MAPS.items() if form.dtype == torch.uint8]


@given(kind=st.sampled_from([*BYTES, INSTANCE]), value=st.integers(-(2**62), 2**62) | st.integers(-300, 70_000))
@settings(max_examples=80, deadline=None)
def test_no_value_becomes_another_one_where_it_is_stored(kind: str, value: int) -> None:
    """Every value is kept or refused, whatever type its array has."""
    values = np.full((1, 3, 3), value)
    least, most = (-1, 32767) if kind == INSTANCE else (0, 255)
    if least <= value <= most:
        assert int(map_tensor(kind, values, (1, 3, 3), "x").unique()) == value
    else:
        with pytest.raises(DataError, match=rf"{kind} value {value} is outside {least} to {most}"):
            map_tensor(kind, values, (1, 3, 3), "x")


def test_names_in_arrays_are_lists_of_texts(tmp_path: Path) -> None:
    labels = np.zeros((2, 20, 24), np.uint8)
    spec = arrays(
        tmp_path, y_train=labels, classes=np.array(SETTINGS.class_names, "S"), site_train=np.array([b"a", b"b"])
    )
    found = read(spec, "train", OPTIONS)
    assert found.value_names == SETTINGS.class_names
    assert found.sites == ("a", "b")
    with pytest.raises(DataError, match=r"classes has shape \[\], expected a list of texts"):
        read(arrays(tmp_path, y_train=labels, classes=np.array("floor")), "train", OPTIONS)
    with pytest.raises(DataError, match=r"classes: not text in UTF-8"):
        read(arrays(tmp_path, y_train=labels, classes=np.array([b"w\xe4nde"])), "train", OPTIONS)


# ---- coded sets


def coded(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    blobs = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "PNG")
        blobs.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, blobs)])
    return np.frombuffer(b"".join(blobs), np.uint8), offsets.astype(np.int64)


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """A set in the form of CamVid: four sequences, of which one is the test."""
    arrays: dict[str, np.ndarray] = {}
    names = {"train": ["A_1.png", "B_1.png"], "val": ["A_2.png"], "test": ["Seq05VD_1.png", "B_2.png"]}
    for part, found in names.items():
        pictures = [Image.fromarray(np.full((6, 8, 3), 10 * len(part), np.uint8)) for _ in found]
        labels = [Image.fromarray((np.arange(48).reshape(6, 8) % 12).astype(np.uint8)) for _ in found]
        arrays[f"{part}_image"], arrays[f"{part}_image_offset"] = coded(pictures)
        arrays[f"{part}_label"], arrays[f"{part}_label_offset"] = coded(labels)
        arrays[f"{part}_name"] = np.array(found)
    np.savez(tmp_path / "street.npz", **arrays)
    return tmp_path / "street.npz"


def test_camvid_trains_on_every_sequence_but_one(street: Path) -> None:
    options = DenseOptions(classes=CAMVID_CLASSES[:-1], size=(12, 8))
    train, test = (read(f"camvid:{street}", part, options) for part in ("train", "test"))
    assert train.names == ("A_1.png", "B_1.png", "A_2.png", "B_2.png")
    assert test.names == ("Seq05VD_1.png",)
    assert read(f"camvid:{street}?only=site=B", "train", options).names == ("B_1.png", "B_2.png")
    assert train.pixel_NCHW.shape == (4, 3, 12, 8)
    label = train.maps[LABEL][0]
    assert torch.equal(label[::2], label[1::2])  # enlarged without mixing values
    assert set(label.unique().tolist()) == {*range(11), VOID}


def test_camvid_has_edges_between_labels_and_none_that_void_takes_part_in(street: Path) -> None:
    options = DenseOptions(classes=CAMVID_CLASSES[:-1], size=(8, 8))
    found = read(f"camvid:{street}", "train", options)
    label, edge = found.maps[LABEL][0], found.maps[EDGES][0]
    for row, column in np.ndindex(8, 8):
        near = [(row, column), (row, column + 1), (row + 1, column)]
        values = [int(label[place]) for place in near if place[0] < 8 and place[1] < 8]
        expected = VOID if VOID in values else int(len(set(values)) > 1)
        assert int(edge[row, column]) == expected, (row, column)


def test_classes_are_matched_by_name_and_not_by_number(street: Path) -> None:
    turned = DenseOptions(classes=CAMVID_CLASSES[:-1][::-1], size=(12, 8))
    plain = DenseOptions(classes=CAMVID_CLASSES[:-1], size=(12, 8))
    one, other = (read(f"camvid:{street}", "train", options).maps[LABEL] for options in (turned, plain))
    known = other != VOID
    assert torch.equal(one[known], 10 - other[known])
    assert torch.equal(one == VOID, other == VOID)


def test_inputs_may_be_a_picture_a_folder_of_pictures_or_a_spec(folder: Path) -> None:
    images = folder / "train" / "image"
    assert read_input(str(images / "site0_a.png"), OPTIONS).pixel_NCHW.shape == (1, 3, 20, 24)
    assert len(read_input(str(images), OPTIONS).names) == 2
    assert LABEL in read_input(str(folder), OPTIONS).maps
    assert len(read_input("scenes:test=3,objects=3", OPTIONS).names) == 3


def test_packed_data_is_read_as_it_was(folder: Path, tmp_path: Path) -> None:
    wanted = (LABEL, NORMALS, EDGES)
    data = read_data(f"folder:{folder}", "train", OPTIONS, 5, wanted)
    np.savez(tmp_path / "packed.npz", **packed(data, data.select(np.array([1])), OPTIONS.classes))
    for part, index in (("train", [0, 1]), ("test", [1])):
        again = read_data(f"npz:{tmp_path / 'packed.npz'}", part, OPTIONS, 5, wanted)
        assert torch.equal(again.pixel_NCHW, data.pixel_NCHW[index])
        assert again.sites == tuple(data.sites[i] for i in index)
        for kind in wanted:
            assert torch.equal(again.maps[kind], data.maps[kind][index])


def test_a_map_that_the_run_wants_and_the_data_lacks_is_named() -> None:
    with pytest.raises(DataError, match=r"no depth map, which this run trains and tests with. It has label"):
        read_data("scenes:objects=3,images=2,maps=label", "train", OPTIONS, 5, (LABEL, DEPTH))
    assert (
        read_data("scenes:objects=3,images=2,test=2,maps=edges", "input", OPTIONS, 5, (LABEL,)).count_K.sum() == 0
    )


@pytest.mark.parametrize("text", ["npz:", "scenes", "cat:x", "npz:a?only=place=x", "npz:a?only=site="])
def test_a_spec_that_no_reader_takes_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="expected"):
        parsed(text)
