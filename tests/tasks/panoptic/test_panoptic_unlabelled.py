"""What nobody has labelled is not taught: parts, crowds, void pictures, clients without a single part label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.errors import DataError
from fednc.tasks.dense.maps import INSTANCE, LABEL, NO_INSTANCE, PART, VOID
from fednc.tasks.panoptic.dataset import PanopticData
from fednc.tasks.panoptic.losses import semantic_loss
from fednc.tasks.panoptic.targets import targets_of
from fednc.tasks.panoptic.task import PARTS, PanopticTask
from support.panoptic_tasks import batch_of, ready, task_of

CAR, PERSON = 2, 3  # label values of the classes with parts
Erase = Callable[[Tensor, Tensor], Tensor]  # labels and parts to parts


def erased(data: PanopticData, seed: int) -> PanopticData:
    """Some rectangles of the maps void, some instances crowds, some parts not labelled."""
    random = np.random.default_rng(seed)
    maps = {kind: value.clone() for kind, value in data.maps.items()}
    height, width = maps[LABEL].shape[1:]
    for number in range(data.examples):
        for kind, nothing in ((LABEL, VOID), (INSTANCE, NO_INSTANCE), (PART, 0), (PART, VOID)):
            if random.random() < 0.5:
                top, left = random.integers(height), random.integers(width)
                tall, wide = random.integers(1, 2 * height), random.integers(1, 2 * width)
                maps[kind][number, top : top + tall, left : left + wide] = nothing
        if random.random() < 0.2:
            maps[LABEL][number] = VOID
    return replace(data, maps=maps)


@pytest.mark.parametrize("seed", range(6))
def test_a_part_is_told_absent_only_where_none_of_its_class_may_hide_it(seed: int) -> None:
    task = task_of()
    data = erased(task.read("streets:images=12,test=2,seed=2", "train"), seed)
    label, instance, part = (data.maps[kind] for kind in (LABEL, INSTANCE, PART))
    columns, targets = task.columns, targets_of([label, instance, part], task.columns)
    told, has = targets.told_BN[:, columns.part_rows], targets.part_BPhw.flatten(2).any(dim=2)
    assert (told & ~has).any()
    assert (told[has]).all()
    for row, (whole, _) in enumerate(columns.parts):
        open_B = ((label == whole) & ((part == 0) | (part == VOID) | (instance < 0))).flatten(1).any(dim=1)
        assert not (told[:, row] & ~has[:, row] & open_B).any()


@pytest.mark.parametrize("seed", range(4))
def test_members_are_counted_as_the_memory_sums_them_whatever_is_unknown(seed: int) -> None:
    task = task_of(queries=3)
    model, data, _ = ready(task, "streets:images=12,test=2,seed=2")
    data = erased(data, seed)
    _, column_X = task.embed(model, batch_of(data))
    assert torch.equal(torch.bincount(column_X, minlength=task.label_space), data.count_K)


def nothing(label: Tensor, part: Tensor) -> Tensor:
    del label
    return torch.zeros_like(part)


def nothing_inside(label: Tensor, part: Tensor) -> Tensor:
    """As readers of files with part labels write it: 0 outside classes with parts."""
    return torch.where((label == CAR) | (label == PERSON), VOID, 0).to(part.dtype)


@pytest.mark.parametrize("erase", [nothing, nothing_inside])
def test_every_way_to_have_no_part_labels_is_the_same(erase: Erase) -> None:
    """No part key is sent, so none may move, and nothing else may be pulled by the part branch."""
    task = task_of()
    model, data, guide = ready(task)

    def trained(part: Tensor) -> tuple[PanopticData, Tensor]:
        mine = replace(data, maps={**data.maps, PART: part})
        model.zero_grad()
        loss = task.loss(model, batch_of(mine), guide)[0]
        loss.backward()
        return mine, loss.detach()

    plain, expected = trained(torch.full_like(data.maps[PART], VOID))
    wanted = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    mine, loss = trained(erase(data.maps[LABEL], data.maps[PART]))
    assert task.owned(mine) == {}
    assert torch.equal(mine.count_K, plain.count_K)
    assert torch.equal(loss, expected)
    for name, param in model.named_parameters():
        assert (param.grad is None) == name.startswith(PARTS)
        assert param.grad is None or torch.equal(param.grad, wanted[name])


def test_a_picture_without_wholes_teaches_an_owner_that_there_are_no_parts() -> None:
    task = task_of()
    _, data, _ = ready(task, "streets:images=40,test=2,seed=3,site=2/3,skew=20")
    targets = targets_of(batch_of(data)[1:], task.columns)
    bare_B = ~((data.maps[LABEL] == CAR) | (data.maps[LABEL] == PERSON)).flatten(1).any(dim=1)
    assert bare_B.any()
    assert targets.told_BN[bare_B][:, task.columns.part_rows].all()


def test_the_pixel_loss_of_parts_does_not_depend_on_whether_a_batch_has_wholes() -> None:
    """Without a part pixel the sum over all pixels has no count of its own to be divided by."""
    task = task_of()
    model, data, _ = ready(task, "streets:images=60,test=3,seed=3,site=2/3,skew=20")
    bare_B = ~((data.maps[LABEL] == CAR) | (data.maps[LABEL] == PERSON)).flatten(1).any(dim=1)

    def of(rows: Tensor) -> float:
        maps = batch_of(data.select(rows.numpy()))
        guess = model.backbone(maps[0])
        targets = targets_of(maps[1:], task.columns)
        given = guess.mask_BNhw[0][:, task.columns.part_rows]
        return float(semantic_loss(guess.semantic_BChw, given, targets).detach())

    bare, whole = (where.nonzero().flatten()[:8] for where in (bare_B, ~bare_B))
    assert len(bare) == len(whole) == 8
    assert of(bare) < of(whole)
    assert of(bare) == pytest.approx(of(torch.cat([bare, bare])), rel=1e-4)


def test_with_a_part_pixel_the_loss_is_divided_by_their_number() -> None:
    """As published, and bit for bit as results were measured."""
    task = task_of()
    model, data, _ = ready(task)
    batch = batch_of(data)
    guess, targets = model.backbone(batch[0]), targets_of(batch[1:], task.columns)
    given, truth = guess.mask_BNhw[0][:, task.columns.part_rows], targets.part_BPhw
    judged = targets.judged_parts_Bhw[:, None]
    entropy = F.binary_cross_entropy_with_logits(given, truth.float(), reduction="none")
    balance = 0.25 * truth.float() + 0.75 * (1 - truth.float())
    each = balance * (given.sigmoid() - truth.float()).abs().pow(2.0) * entropy * judged
    expected = each.sum() / (truth & judged).sum()
    nobody = replace(targets, label_Bhw=torch.full_like(targets.label_Bhw, VOID))
    without = semantic_loss(guess.semantic_BChw, given, nobody)
    assert float(without.detach()) == 0
    of_classes = semantic_loss(guess.semantic_BChw, given[:, :0], replace(targets, part_BPhw=truth[:, :0]))
    found = semantic_loss(guess.semantic_BChw, given, targets)
    assert torch.equal(found, of_classes + expected)


def test_void_pictures_teach_nothing() -> None:
    task = task_of()
    model, data, guide = ready(task)
    unknown = {LABEL: VOID, INSTANCE: NO_INSTANCE, PART: 0}
    void = replace(data, maps={kind: torch.full_like(data.maps[kind], value) for kind, value in unknown.items()})
    assert not targets_of(batch_of(void)[1:], task.columns).told_BN.any()
    assert not void.count_K.any()
    loss, _ = task.loss(model, batch_of(void), guide)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(param.grad is None or not param.grad.any() for param in model.parameters())


def test_crowds_alone_tell_no_query_of_things_that_there_is_none() -> None:
    task = task_of()
    _, data, _ = ready(task)
    crowds = replace(data, maps={**data.maps, INSTANCE: torch.full_like(data.maps[INSTANCE], NO_INSTANCE)})
    told = targets_of(batch_of(crowds)[1:], task.columns).told_BN
    has_things = torch.isin(data.maps[LABEL], torch.tensor(task.columns.things)).flatten(1).any(dim=1)
    assert has_things.any()
    assert not told[has_things, : task.columns.queries].any()
    assert told[:, task.columns.queries : task.columns.part_rows.start].all()  # sky and road are labelled


def packed(task: PanopticTask, data: PanopticData, path: Path) -> str:
    np.savez(path, **task.pack(data, data))
    return f"npz:{path}"


def test_pictures_with_nothing_labelled_are_refused(tmp_path: Path) -> None:
    task = task_of()
    data = task.read("streets:images=4,test=2,seed=1", "train")
    void = {LABEL: torch.full_like(data.maps[LABEL], VOID)}
    crowd = {
        LABEL: torch.full_like(data.maps[LABEL], CAR),
        INSTANCE: torch.full_like(data.maps[INSTANCE], NO_INSTANCE),
        PART: torch.zeros_like(data.maps[PART]),
    }
    for name, maps in (("void", void), ("crowd", crowd)):
        mine = replace(data, maps={**data.maps, PART: torch.zeros_like(data.maps[PART]), **maps})
        spec = packed(task, mine, tmp_path / f"{name}.npz")
        for purpose in ("train", "test"):
            with pytest.raises(DataError, match="not one pixel can be trained or tested with"):
                task.read(spec, purpose)  # type: ignore[arg-type]
        assert task.read(spec, "input").examples == 4


def test_what_no_picture_has_is_named(tmp_path: Path) -> None:
    """Of parts only where some are labelled: other clients may have them."""
    task = task_of()
    data = task.read("streets:images=12,test=2,seed=1", "train")
    without = torch.where(data.maps[LABEL] == PERSON, VOID, data.maps[LABEL])
    mine = replace(data, maps={**data.maps, LABEL: without, PART: torch.where(without == CAR, data.maps[PART], 0)})
    notes = task.read(packed(task, mine, tmp_path / "a.npz"), "train").notes
    wanted = ["person", "person/head", "person/torso", "person/legs"]
    assert f"no picture has 4 of the run's classes and parts: {', '.join(map(repr, wanted))}" in notes
    bare = replace(mine, maps={**mine.maps, PART: torch.full_like(without, VOID)})
    notes = task.read(packed(task, bare, tmp_path / "b.npz"), "train").notes
    assert "no picture has 1 of the run's classes and parts: 'person'" in notes
    assert not any("no picture has" in note for note in data.notes)
