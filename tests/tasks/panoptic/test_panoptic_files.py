"""Folders of files: which belong together, which are left out, and that errors name the file that is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fednc.common.errors import DataError
from fednc.tasks.dense.maps import PART
from support.panoptic_folders import coco_folder, ids_folder, streets
from support.panoptic_tasks import task_of

WRITERS: dict[str, Callable[..., Path]] = {"coco": coco_folder, "partids": ids_folder}
LABEL_FILES = [("coco", "panoptic", "png"), ("coco", "part", "png"), ("partids", "ids", "tif")]


def written(kind: str, root: Path) -> tuple[str, Path]:
    """(data spec, the folder of its training part) of three streets; the last two have parts."""
    return f"{kind}:{WRITERS[kind](root, streets())}", root / "train"


def refused(spec: str, *words: str, **task: Any) -> None:
    with pytest.raises(DataError) as e:
        task_of(**task).read(spec, "train")
    for word in words:
        assert word in str(e.value)


@pytest.mark.parametrize(("kind", "folder", "ending"), LABEL_FILES)
def test_a_label_file_of_another_size_than_its_picture_is_refused(
    tmp_path: Path, kind: str, folder: str, ending: str
) -> None:
    spec, base = written(kind, tmp_path)
    path = base / folder / f"1.{ending}"
    Image.fromarray(np.asarray(Image.open(path))[:12]).save(path)
    refused(spec, f"{folder}/1.{ending}", "is 12x32", "24x32")


@pytest.mark.parametrize("kind", list(WRITERS))
def test_files_are_compared_with_their_pictures_and_not_with_the_run(tmp_path: Path, kind: str) -> None:
    spec, _ = written(kind, tmp_path)
    assert task_of(size=[12, 16]).read(spec, "train").maps[PART].shape == (3, 12, 16)


@pytest.mark.parametrize(("kind", "folder", "ending"), [*LABEL_FILES[1:]])
def test_errors_about_parts_name_the_file(tmp_path: Path, kind: str, folder: str, ending: str) -> None:
    spec, base = written(kind, tmp_path)
    path, plain = base / folder / f"0.{ending}", 0 if kind == "coco" else 99_999
    values = np.asarray(Image.open(path))
    Image.fromarray(np.where(values > plain, 0, values)).save(path)  # no parts, and in `ids` no objects
    having = [each for each in sorted((base / folder).iterdir()) if (np.asarray(Image.open(each)) > plain).any()]
    assert having
    refused(spec, str(having[0]), "has no parts in this run", parts={"ball": ["a", "b"]})
    refused(spec, str(having[0]), "is not in this run", parts={"car": ["a", "b"], "person": ["c", "d"]})


@pytest.mark.parametrize(
    ("kind", "folder", "ending"), [*LABEL_FILES, ("coco", "image", "png"), ("partids", "image", "png")]
)
def test_endings_may_be_in_capitals(tmp_path: Path, kind: str, folder: str, ending: str) -> None:
    spec, base = written(kind, tmp_path)
    before = task_of().read(spec, "train")
    (base / folder / f"1.{ending}").rename(base / folder / f"1.{ending.upper()}")
    after = task_of().read(spec, "train")
    assert torch.equal(after.pixel_NCHW, before.pixel_NCHW)
    assert all(torch.equal(after.maps[each], value) for each, value in before.maps.items())


@pytest.mark.parametrize(
    ("kind", "folder", "ending"), [*LABEL_FILES, ("coco", "image", "png"), ("partids", "image", "png")]
)
def test_of_two_files_of_one_name_none_is_chosen(tmp_path: Path, kind: str, folder: str, ending: str) -> None:
    spec, base = written(kind, tmp_path)
    other = {"png": "PNG", "tif": "tiff"}[ending]
    shutil.copy(base / folder / f"1.{ending}", base / folder / f"1.{other}")
    refused(spec, f"1.{ending}", f"1.{other}", "one name")


@pytest.mark.parametrize(("kind", "why"), [("coco", "not in panoptic.json"), ("partids", "in ids/")])
def test_pictures_without_labels_are_left_out_and_named(tmp_path: Path, kind: str, why: str) -> None:
    spec, base = written(kind, tmp_path)
    Image.fromarray(streets()[0].pixel).save(base / "image" / "stranger.png")
    data = task_of().read(spec, "train")
    assert data.examples == 3
    assert any("image/stranger.png left out" in note and why in note for note in data.notes)


def test_label_files_that_the_list_does_not_name_are_left_out_and_named(tmp_path: Path) -> None:
    spec, base = written("coco", tmp_path)
    changed(base, lambda given: given["annotations"].pop(0))
    data = task_of().read(spec, "train")
    assert data.examples == 2
    for folder in ("image", "panoptic", "part"):
        assert f"{folder}/0.png left out: not in panoptic.json" in data.notes


def changed(base: Path, change: Callable[[Any], object]) -> None:
    given = json.loads((base / "panoptic.json").read_text())
    change(given)
    (base / "panoptic.json").write_text(json.dumps(given))


def first(given: Any) -> Any:
    return given["annotations"][0]["segments_info"][0]


def same_file(given: Any) -> None:
    given["annotations"][0]["file_name"], given["annotations"][1]["file_name"] = "x/0.png", "y/0.png"


def same_entry(given: Any) -> None:
    given["annotations"].append(given["annotations"][0])


def same_segment(given: Any) -> None:
    given["annotations"][1]["segments_info"].append({**first(given), "category_id": 11})
    given["annotations"][1]["segments_info"].append({**first(given), "category_id": 12})


def same_category(given: Any) -> None:
    given["categories"].append({"id": given["categories"][0]["id"], "name": "other"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (same_file, ["x/0.png", "y/0.png", "same|both"]),
        (same_entry, ["0.png", "both"]),
        (same_segment, ["segment", "1.png", "more than once"]),
        (same_category, ["different ids"]),
    ],
)
def test_what_is_listed_twice_is_refused(tmp_path: Path, change: Callable[[Any], None], words: list[str]) -> None:
    spec, base = written("coco", tmp_path)
    changed(base, change)
    with pytest.raises(DataError) as e:
        task_of().read(spec, "train")
    assert all(re.search(word, str(e.value)) for word in words)


@pytest.mark.parametrize("value", ["abc", "11", float("nan"), 10.7, None, True, [1], -1, 2**70])
@pytest.mark.parametrize("key", ["category_id", "id"])
def test_numbers_of_segments_that_are_no_numbers_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    spec, base = written("coco", tmp_path)
    changed(base, lambda given: first(given).update({key: value}))
    refused(spec, "panoptic.json")


@pytest.mark.parametrize("value", ["abc", float("nan"), 10.7, None, True])
def test_numbers_of_categories_that_are_no_numbers_are_refused(tmp_path: Path, value: Any) -> None:
    spec, base = written("coco", tmp_path)
    changed(base, lambda given: given["categories"][0].update(id=value))
    refused(spec, "not a COCO panoptic file")
