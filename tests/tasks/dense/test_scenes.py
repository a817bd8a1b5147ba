"""Generated scenes: every map is exact, everything follows from the seed, frequencies have a tail."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fednc.common.errors import DataError
from fednc.tasks.dense.maps import NO_INSTANCE
from fednc.tasks.dense.options import DenseOptions
from fednc.tasks.dense.scenes import STUFF, SceneSettings, draw_scenes
from fednc.tasks.dense.sources.select import read

SETTINGS = SceneSettings(size=(48, 56), objects=6, tail=0.7)


def test_scenes_follow_from_their_seed_and_number_alone() -> None:
    few, many = draw_scenes(SETTINGS, 2, 5, "train"), draw_scenes(SETTINGS, 4, 5, "train")
    for one, other in zip(few, many, strict=False):
        for name in ("pixel_HW3", "label", "instance", "part", "depth", "normals", "edges", "saliency"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert not np.array_equal(few[0].label, few[1].label)
    assert not np.array_equal(few[0].label, draw_scenes(SETTINGS, 1, 5, "test")[0].label)
    assert not np.array_equal(few[0].label, draw_scenes(SETTINGS, 1, 6, "train")[0].label)


def test_what_is_nearer_covers_what_is_behind_it() -> None:
    for scene in draw_scenes(SETTINGS, 20, 1, "train"):
        there = np.unique(scene.instance[scene.instance != NO_INSTANCE])
        depths = [scene.depth[scene.instance == number] for number in (NO_INSTANCE, *there)]
        for behind, before in itertools.pairwise(depths):
            assert before.max() < behind.min()
        assert np.array_equal(scene.saliency == 1, scene.instance == there[-1])
        for number in there:  # an object is of one class
            assert len(np.unique(scene.label[scene.instance == number])) == 1
        assert ((scene.label < len(STUFF)) == (scene.instance == NO_INSTANCE)).all()
        assert ((scene.part == 0) == (scene.instance == NO_INSTANCE)).all()


def test_borders_are_where_neighbours_belong_to_different_things() -> None:
    scene = draw_scenes(SETTINGS, 1, 2, "train")[0]
    thing = scene.label.astype(int) * 1000 + scene.instance
    for row in range(thing.shape[0] - 1):
        for column in range(thing.shape[1] - 1):
            same = thing[row, column] == thing[row + 1, column] == thing[row, column + 1]
            assert scene.edges[row, column] == (not same)


def test_normals_are_those_of_the_depth() -> None:
    for scene in draw_scenes(SETTINGS, 5, 3, "train"):
        np.testing.assert_allclose(np.linalg.norm(scene.normals, axis=0), 1, atol=1e-6)
        height = scene.depth.shape[0]
        right = (scene.depth[1:-1, 2:] - scene.depth[1:-1, :-2]) / 2 * height
        down = (scene.depth[2:, 1:-1] - scene.depth[:-2, 1:-1]) / 2 * height
        thing = scene.label.astype(int) * 1000 + scene.instance
        centre = thing[1:-1, 1:-1]
        inside = (thing[1:-1, 2:] == centre) & (thing[1:-1, :-2] == centre)
        inside &= (thing[2:, 1:-1] == centre) & (thing[:-2, 1:-1] == centre)
        expected = np.stack([right, down, np.ones_like(right)])
        expected /= np.linalg.norm(expected, axis=0)
        np.testing.assert_allclose(scene.normals[:, 1:-1, 1:-1][:, inside], expected[:, inside], atol=2e-3)


def test_kinds_of_objects_have_shares_with_a_tail_and_sites_prefer_some() -> None:
    share_O = SETTINGS.shares_O
    np.testing.assert_allclose(share_O[1:] / share_O[:-1], 0.7)
    sites = [SceneSettings(objects=6, tail=0.7, site=(number, 3)).shares_O for number in range(3)]
    for number, site_O in enumerate(sites):
        mine = np.arange(6) % 3 == number
        assert (site_O[mine] / share_O[mine]).min() > (site_O[~mine] / share_O[~mine]).max()
    drawn = np.zeros(8)
    for scene in draw_scenes(SceneSettings(objects=6, tail=0.7), 300, 0, "train"):
        for number in np.unique(scene.instance[scene.instance != NO_INSTANCE]):
            drawn[scene.label[scene.instance == number][0]] += 1
    np.testing.assert_allclose(drawn[2:] / drawn.sum(), share_O, atol=0.04)
    assert drawn[:2].sum() == 0


def test_test_scenes_are_balanced_and_the_same_for_every_site() -> None:
    options = DenseOptions(classes=SceneSettings(objects=4).class_names)
    one = read("scenes:test=5,seed=1,objects=4,tail=0.5,site=0/2", "test", options)
    other = read("scenes:test=5,seed=1,objects=4,tail=1.0,site=1/2", "test", options)
    assert all((one.maps[kind] == other.maps[kind]).all() for kind in ("label", "edges", "part"))
    train = [read(f"scenes:images=5,seed=1,objects=4,site={i}/2", "train", options) for i in range(2)]
    assert (train[0].maps["label"] != train[1].maps["label"]).any()
    assert set(train[1].sites) == {"site 1"}


def test_a_site_has_only_the_maps_that_it_names() -> None:
    options = DenseOptions(classes=SceneSettings(objects=4).class_names)
    assert set(read("scenes:images=2,objects=4,maps=depth+normals", "train", options).maps) == {"depth", "normals"}


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("scenes:pictures=3", "'pictures=3' is not KEY=VALUE with a key of images"),
        ("scenes:tail=2", "tail = '2' cannot be used"),
        ("scenes:site=3/3", "site = '3/3' cannot be used"),
        ("scenes:maps=label+smell", "'smell' is not one of"),
        ("scenes:images=0", "images = '0' cannot be used"),
        ("scenes:objects=9", "'cross' and|is not in this run"),
        ("pictures:x", "expected scenes:KEY=VALUE"),
    ],
)
def test_specs_that_cannot_be_read_say_what_is_wrong(spec: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read(spec, "train", DenseOptions(classes=SceneSettings(objects=3).class_names))
