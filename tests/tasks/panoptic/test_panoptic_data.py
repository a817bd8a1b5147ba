"""Data of the panoptic task: all kinds of sources, names instead of positions, and errors that say what is
wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fednc.cli.main import app
from fednc.common.config.run import parse_run
from fednc.common.config.tables import SplitSection
from fednc.common.errors import ConfigError, DataError
from fednc.common.tasks.api import Part
from fednc.tasks.dense.maps import INSTANCE, LABEL, PART, VOID
from fednc.tasks.panoptic.sources.part_ids import decoded, encoded
from fednc.tasks.panoptic.streets import CLASSES, PARTS, THINGS
from fednc.tasks.panoptic.task import PanopticSplit, PanopticTask
from support.oracles import ORACLES
from support.panoptic_folders import coco_folder, ids_folder, streets
from support.panoptic_tasks import task_of

VECTORS = ORACLES / "panoptic_parts_format" / "vectors.json"


def same(found: torch.Tensor, street_maps: list[np.ndarray]) -> bool:
    return np.array_equal(found.numpy(), np.stack(street_maps))


@pytest.mark.parametrize("kind", ["coco", "partids"])
def test_folders_give_the_maps_of_the_streets(tmp_path: Path, kind: str) -> None:
    given, write = streets(), coco_folder if kind == "coco" else ids_folder
    data = task_of().read(f"{kind}:{write(tmp_path, given)}", "train")
    assert same(data.maps[LABEL], [street.label for street in given])
    objects = [street.instance >= 0 for street in given]
    assert same(data.maps[INSTANCE] >= 0, objects)
    for found, street in zip(data.maps[INSTANCE].numpy(), given, strict=True):
        pairs = np.unique(np.stack([found.ravel(), street.instance.ravel()]), axis=1)
        assert pairs.shape[1] == len(np.unique(street.instance))  # the same objects, with other numbers
    assert same(data.maps[PART], [street.part for street in given])
    assert any("2 of 3 pictures have part labels" in note for note in data.notes)


def test_a_folder_without_part_labels_has_unknown_parts(tmp_path: Path) -> None:
    data = task_of().read(f"coco:{coco_folder(tmp_path, streets(), parts=False)}", "train")
    assert (data.maps[PART] == VOID).all()
    assert data.with_parts == 0


def test_arrays_round_trip_through_pack(tmp_path: Path) -> None:
    task = task_of()
    data = task.read("streets:images=4,test=2,seed=1", "train")
    np.savez(tmp_path / "a.npz", **task.pack(data, task.read("streets:images=4,test=2,seed=1", "test")))
    again = task.read(task.packed_spec(tmp_path / "a.npz"), "train")
    assert all(torch.equal(again.maps[kind], value) for kind, value in data.maps.items())
    assert torch.equal(again.count_K, data.count_K)


def broken(folder: Path, change: Any) -> str:
    path = folder / "train" / "panoptic.json"
    given = json.loads(path.read_text())
    change(given)
    path.write_text(json.dumps(given))
    return f"coco:{folder}"


def test_wrong_label_files_are_named(tmp_path: Path) -> None:
    task = task_of()

    def error(name: str, change: Any) -> str:
        spec = broken(coco_folder(tmp_path / name, streets()), change)
        with pytest.raises(DataError) as e:
            task.read(spec, "train")
        return str(e.value)

    def unknown_category(given: Any) -> None:
        given["annotations"][1]["segments_info"][0]["category_id"] = 99

    def unlisted_segment(given: Any) -> None:
        given["annotations"][2]["segments_info"].pop()

    def strange_class(given: Any) -> None:
        given["categories"][0]["name"] = "dog"

    assert "category_id 99" in (told := error("a", unknown_category))
    assert "1.png" in told
    assert "segments_info" in error("b", unlisted_segment)
    assert "'dog'" in (told := error("c", strange_class))
    assert "task.void" in told
    assert "not a COCO panoptic file" in error("d", lambda given: given.pop("categories"))


def test_a_part_of_a_class_without_parts_is_refused(tmp_path: Path) -> None:
    task = task_of(parts={"car": ["body", "window", "wheel"]})
    for kind, write in (("coco", coco_folder), ("partids", ids_folder)):
        spec = f"{kind}:{write(tmp_path / kind, streets(6))}"
        with pytest.raises(DataError, match=r"class 'person', which has no parts in this run"):
            task.read(spec, "train")
    wide = task_of()
    data = wide.read("streets:images=8,test=2,seed=1", "train")
    np.savez(tmp_path / "a.npz", **wide.pack(data, data))
    with pytest.raises(DataError, match=r"of class 'person' in .* 'person' has no parts"):
        task.read(f"npz:{tmp_path / 'a.npz'}", "train")


def test_a_part_that_the_run_does_not_have_is_refused() -> None:
    task = task_of(parts={"car": ["body", "window", "tyre"], "person": ["head", "torso", "legs"]})
    with pytest.raises(DataError, match=r"part 'wheel' of 'car' is not in this run"):
        task.read("streets:images=8,test=2,seed=1", "train")


def test_numbers_without_a_name_are_refused(tmp_path: Path) -> None:
    spec = f"partids:{ids_folder(tmp_path, streets(), {'classes': {'20': 'sky', '21': 'road'}, 'parts': {}})}"
    with pytest.raises(DataError, match="has no name"):
        task_of().read(spec, "train")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"things": ["dog"]}, "'dog' is not one of task.classes"),
        ({"parts": {"car": ["body"]}}, "at least 2"),
        ({"parts": {"car": ["body", "body"]}}, "more than once"),
        ({"heads": 3}, "does not divide"),
        ({"class_weights": [1.0] * 12}, "no_object"),
    ],
)
def test_options_that_contradict_each_other_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(**keys)


def test_only_the_first_parts_of_a_split_keep_their_part_labels() -> None:
    task = task_of()
    split = PanopticSplit(kind="iid", parts=3, part_labels=1)
    mine = [task.load_train("streets:images=12,test=2,seed=1", Part(i, 3), split) for i in range(3)]
    assert [data.with_parts > 0 for data in mine] == [True, False, False]
    assert sum(data.examples for data in mine) == 12
    everywhere = task.load_train("streets:images=12,test=2,seed=1", Part(2, 3), PanopticSplit(kind="iid", parts=3))
    assert everywhere.with_parts > 0
    assert isinstance(split, SplitSection)


@pytest.mark.skipif(not VECTORS.is_file(), reason="the official vectors are not on this machine")
def test_numbers_are_decoded_as_the_official_vectors_say() -> None:
    vectors = json.loads(VECTORS.read_text())
    for number, (sid, iid, pid, *_) in vectors["decode uid->[sid,iid,pid,sid_iid,sid_pid]"]:
        assert [int(each[0]) for each in decoded(np.array([number]))] == [sid, iid, pid]
    for (sid, iid, pid), number in vectors["encode [sid,iid,pid]->uid"]:
        assert int(encoded(*(np.array([each]) for each in (sid, iid, pid)))[0]) == number


def test_numbers_of_three_digits_are_refused() -> None:
    with pytest.raises(ValueError, match="123"):
        decoded(np.array([7, 123]))


def test_streets_follow_from_their_seed_and_sites_prefer_a_thing() -> None:
    one, other = (streets()[1] for _ in range(2))
    assert np.array_equal(one.pixel, other.pixel)
    counts = []
    for site in range(3):
        task = task_of()
        data = task.read(f"streets:images=40,test=2,seed=1,site={site}/3,skew=9", "train")
        counts.append(data.count_K[2:5])
    assert [int(count.argmax()) for count in counts] == [0, 1, 2]


def only_balls(value: dict[str, Any]) -> None:
    for each in value["categories"]:
        each["isthing"] = int(each["name"] == "ball")


@pytest.mark.parametrize("change", [None, only_balls])
def test_a_suggested_run_file_reads_the_folder_it_was_made_for(tmp_path: Path, change: Any) -> None:
    """Names, things and parts come from the JSON files; without `isthing` things are guessed, which is said."""
    spec = f"coco:{coco_folder(tmp_path, streets(6))}"
    if change:
        broken(tmp_path, change)
    found = PanopticTask.suggest_options(spec)
    values = {"task": {"name": "panoptic", **found.options}, **found.tables}
    task = PanopticTask(parse_run(values))
    data = task.load_train(spec, None, None)
    assert sorted(task.options.classes) == sorted(CLASSES)
    if change:
        assert task.options.things == ("ball",)
    else:
        assert set(PARTS) <= set(task.options.things) <= set(THINGS)
    assert any("guessed" in note for note in found.notes) == (change is None)
    assert data.with_parts > 0
    pixels = next(iter(data.eval_batches(6)))[0]
    assert pixels.mean(dim=(0, 2, 3)).abs().max() < 0.01


def test_no_suggestion_without_things(tmp_path: Path) -> None:
    coco_folder(tmp_path, streets(), parts=False)
    spec = broken(tmp_path, lambda value: [each.update(isthing=0) for each in value["categories"]])
    with pytest.raises(DataError, match="no category is a thing"):
        PanopticTask.suggest_options(spec)
    with pytest.raises(DataError, match="by hand"):
        PanopticTask.suggest_options(f"partids:{tmp_path}")


def test_clients_announce_who_has_part_labels() -> None:
    """`fednc status` shows it, and only those count for the part branch."""
    task = task_of()
    labelled, other = (task.read(f"streets:images=4,seed=1{more}", "train") for more in ("", ",parts=no"))
    assert task.holdings(labelled) == {"part labels": labelled.with_parts}
    assert set(task.owned(labelled).values()) == {labelled.with_parts}
    assert task.holdings(other) == {"part labels": 0}
    assert not task.owned(other)
    assert task_of(parts={}).holdings(other) == {}


def test_init_asks_for_the_data_that_names_things(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["init", "coco", "--output", str(tmp_path / "run.toml")])
    assert found.exit_code == ConfigError.exit_code
    assert "--data coco:PATH" in found.output
