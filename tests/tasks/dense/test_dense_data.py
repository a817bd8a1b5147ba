"""Pictures with maps: crops and flips move every map along, pixels and pictures are counted, samples are exact."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.seeds import generator
from fednc.tasks.dense.dataset import DenseData, most_members, sampled
from fednc.tasks.dense.maps import DEPTH, LABEL, MAPS, NORMALS, VOID, known
from fednc.tasks.dense.moves import draw_moves, moved

ONE = torch.ones(3, 1, 1)


def coded(pictures: int = 6, height: int = 12, width: int = 10, **changes) -> DenseData:
    """Every pixel of every map holds its own position, so that it is seen where it went."""
    code = torch.arange(height * width).reshape(height, width)
    label_NHW = (code % 7).byte().expand(pictures, -1, -1).clone()
    label_NHW[:, 0] = VOID
    normal = torch.stack([code / code.numel(), torch.ones(height, width), torch.zeros(height, width)])
    maps = {
        LABEL: label_NHW,
        DEPTH: code.float().expand(pictures, -1, -1),
        NORMALS: normal.expand(pictures, -1, -1, -1),
    }
    values = {
        "pixel_NCHW": code.byte().expand(pictures, 3, -1, -1).clone(),
        "maps": maps,
        "wanted": (LABEL, DEPTH, NORMALS),
        "label_space": 7,
        "mean_C11": torch.zeros(3, 1, 1),
        "std_C11": ONE,
        **changes,
    }
    return DenseData(**values)


def test_crops_and_flips_move_every_map_with_its_picture() -> None:
    data, mirrored = coded(pictures=8, crop=(8, 6), flip=True), 0
    for pixel_BCHW, label_BHW, depth_BHW, normal_BCHW in data.train_batches(4, generator(1)):
        assert pixel_BCHW.shape == (4, 3, 8, 6)
        code_BHW = (pixel_BCHW[:, 0] * 255).round().long()
        assert torch.equal(depth_BHW.long(), code_BHW)
        assert torch.equal(label_BHW, torch.where(code_BHW < 10, VOID, code_BHW % 7))
        step_B = code_BHW[:, 0, 1] - code_BHW[:, 0, 0]
        assert set(step_B.tolist()) <= {1, -1}
        mirrored += int((step_B < 0).sum())
        sign_B11 = step_B[:, None, None]  # a mirrored surface leans the other way
        torch.testing.assert_close(normal_BCHW[:, 0], sign_B11 * code_BHW / 120)
        assert (normal_BCHW[:, 1] == 1).all()
    assert 0 < mirrored < 8


def test_without_moves_pictures_are_whole_and_evaluation_never_moves_them() -> None:
    data = coded(crop=(8, 6), flip=True)
    for pixel_BCHW, label_BHW, *_ in data.eval_batches(4):
        assert pixel_BCHW.shape[2:] == label_BHW.shape[1:] == (12, 10)
    plain = coded()
    (batch,) = plain.train_batches(6, generator(0))
    assert torch.equal(batch[1], plain.maps[LABEL].long())


@given(top=st.integers(1, 12), left=st.integers(1, 10))
@settings(max_examples=20, deadline=None)
def test_a_crop_is_a_part_of_its_picture(top: int, left: int) -> None:
    moves = draw_moves(3, (12, 10), (top, left), generator(top * 100 + left), flip=False)
    code = torch.arange(120).reshape(12, 10).expand(3, -1, -1)
    for number, found_HW in enumerate(moved(code, moves)):
        first = int(moves.top_B[number]), int(moves.left_B[number])
        assert torch.equal(found_HW, code[0][first[0] : first[0] + top, first[1] : first[1] + left])


def test_pixels_and_pictures_are_counted_by_class_and_site() -> None:
    label_NHW = torch.full((3, 4, 4), VOID, dtype=torch.uint8)
    label_NHW[0, :2] = 0
    label_NHW[1, :, 0] = 1
    label_NHW[2, 0, 0] = 1
    data = coded(3, 4, 4, maps={LABEL: label_NHW}, wanted=(LABEL,), label_space=3, sites=("a", "b", "b"))
    counts = {name: value.tolist() for name, value in data.counts.items()}
    assert counts["pixels"] == [8, 5, 0]
    assert counts["pictures"] == data.having_K.tolist() == [1, 2, 0]
    assert counts["pixels, b"] == [0, 5, 0]
    assert counts["pictures, a"] == [1, 0, 0]
    assert data.rarest_N.tolist() == [0, 1, 1]


@given(
    labels=st.lists(st.integers(0, 4), min_size=24, max_size=24),
    memory_pixels=st.integers(1, 30),
    pictures=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_samples_have_every_class_and_do_not_depend_on_the_batch(
    labels: list[int], memory_pixels: int, pictures: int
) -> None:
    label_BHW = torch.tensor(labels).reshape(1, 4, 6).repeat(pictures, 1, 1)
    label_BHW[label_BHW == 4] = VOID
    place_P = sampled(label_BHW, 4, memory_pixels)
    alone = sampled(label_BHW[:1], 4, memory_pixels)
    assert torch.equal(place_P, torch.cat([alone + 24 * number for number in range(pictures)]))
    chosen = label_BHW.flatten()[place_P]
    assert (chosen != VOID).all()
    assert set(chosen.tolist()) == set(label_BHW.flatten().tolist()) - {VOID}
    assert len(alone) <= most_members(memory_pixels, 4, 24)
    data = coded(pictures, 4, 6, maps={LABEL: label_BHW.byte()}, wanted=(LABEL,), label_space=4)
    data = DenseData(**{**vars_of(data), "memory_pixels": memory_pixels})
    assert torch.equal(torch.bincount(chosen, minlength=4), data.count_K)


def vars_of(data: DenseData) -> dict:
    return {name: getattr(data, name) for name in data.__dataclass_fields__}


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    data = coded(9)
    rest, held = data.hold_out(0.3, 4)
    for name, value in data.counts.items():
        assert torch.equal(value, rest.counts[name] + held.counts[name])
    assert torch.equal(data.count_K, rest.count_K + held.count_K)
    assert list(itertools.chain(rest.names, held.names)) == []


def test_a_map_that_is_missing_is_named() -> None:
    with pytest.raises(KeyError, match="no map 'instance'"):
        next(coded(wanted=(LABEL, "instance")).eval_batches(2))


@pytest.mark.parametrize("kind", [kind for kind, form in MAPS.items() if form.unknown is not None])
def test_a_map_that_others_have_is_unknown_everywhere(kind: str) -> None:
    data = coded(maps={}, wanted=(kind,))
    ((_, value),) = data.eval_batches(9)
    assert not bool(known(kind, value).any())
    assert data.having(kind) == 0
    moves = draw_moves(6, (12, 10), (8, 8), generator(0, "moves"), flip=True)
    assert not bool(known(kind, moved(value, moves, kind)).any())


def test_pictures_are_counted_of_which_a_map_says_something() -> None:
    data = coded()
    assert {kind: data.having(kind) for kind in (LABEL, DEPTH, NORMALS)} == {LABEL: 6, DEPTH: 6, NORMALS: 6}
    depth = data.maps[DEPTH].clone()
    depth[:4] = float("nan")
    assert replace(data, maps={**data.maps, DEPTH: depth}).having(DEPTH) == 2
    assert data.without([DEPTH]).having(DEPTH) == 0


def test_data_without_labels_is_void_everywhere() -> None:
    data = coded(maps={}, wanted=(LABEL,))
    ((_, label_BHW),) = data.eval_batches(9)
    assert (label_BHW == VOID).all()
    assert data.count_K.sum() == 0
    assert np.array_equal(data.rarest_N, np.zeros(6))
