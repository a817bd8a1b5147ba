"""Mechanisms of the network: matching, columns, joint reasoning, hard grouping, alignment, masked attention,
stages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fednc.tasks.dense.maps import VOID
from fednc.tasks.panoptic import losses
from fednc.tasks.panoptic.layers import AlignedDecoder, Flow, base_grid, sine_encoding
from fednc.tasks.panoptic.masked_stage import MaskedAttention
from fednc.tasks.panoptic.matching import match
from fednc.tasks.panoptic.merging import merged
from fednc.tasks.panoptic.network import NetworkShape, PartFormer
from fednc.tasks.panoptic.stages import JointStage, grouped
from fednc.tasks.panoptic.targets import targets_of
from fednc.tasks.panoptic.task import PARTS, logits_of
from support.panoptic_tasks import STREETS, batch_of, ready, task_of

# ---- matching ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["joint", "masked"])
def test_permuted_thing_queries_permute_outputs_and_keep_the_loss(decoder: str) -> None:
    task = task_of(decoder=decoder)
    model, data, guide = ready(task)
    batch, order = batch_of(data), torch.randperm(8)
    before, first = model.backbone(batch[0]), task.loss(model, batch, guide)[0]
    model.backbone.thing_kernels.data = model.backbone.thing_kernels.data[order]
    after, second = model.backbone(batch[0]), task.loss(model, batch, guide)[0]
    torch.testing.assert_close(after.mask_BNhw[-1][:, :8], before.mask_BNhw[-1][:, order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.mask_BNhw[-1][:, 8:], before.mask_BNhw[-1][:, 8:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("which", ["stuff", "part"])
def test_stuff_and_part_queries_cannot_be_permuted(which: str) -> None:
    task = task_of()
    model, data, guide = ready(task)
    batch, first = batch_of(data), task.loss(model, batch_of(data), guide)[0]
    kernels = model.backbone.parts.kernels if which == "part" else model.backbone.class_kernels
    kernels.weight.data[:2] = kernels.weight.data[:2].flip(0)
    assert abs(float((task.loss(model, batch, guide)[0] - first).detach())) > 1e-3


def test_every_object_gets_the_cheapest_query() -> None:
    task = task_of()
    _, data, _ = ready(task)
    batch = batch_of(data)
    targets = targets_of(batch[1:], task.columns)
    order_Q = torch.randperm(task.columns.queries)
    perfect = torch.where(targets.thing_BQhw[:, order_Q], 9.0, -9.0)
    picture_M, query_M, object_M = match(perfect, None, targets)
    assert torch.equal(order_Q[query_M], object_M)
    assert torch.equal(torch.bincount(picture_M, minlength=data.examples), targets.counted_B)


def test_members_are_counted_as_the_memory_sums_them() -> None:
    """The server refuses sums over other numbers of members than a client announced."""
    task = task_of(queries=2)  # fewer queries than some pictures have objects
    model, data, _ = ready(task)
    _, column_X = task.embed(model, batch_of(data))
    assert torch.equal(torch.bincount(column_X, minlength=task.label_space), data.count_K)
    assert int(data.count_K.sum()) <= task.members_per_example * data.examples
    assert int(targets_of(batch_of(data)[1:], task.columns).counted_B.max()) == 2


# ---- columns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fednc", "fedavg"])
def test_the_loss_of_a_query_has_no_gradient_on_columns_of_other_kinds(method: str) -> None:
    task = task_of(method)
    model, data, guide = ready(task)
    batch, columns = batch_of(data), task.columns
    seen: list[Tensor] = []

    def watched(module: Any, given: Any, result: Tensor) -> None:
        result.requires_grad_().retain_grad()
        seen.append(result)

    model.head.register_forward_hook(watched)
    task.loss(model, batch, guide)[0].backward()
    gradient_XK = seen[-1].grad
    assert gradient_XK is not None
    gradient = gradient_XK.reshape(task.options.stages, data.examples, columns.all_queries, -1)
    assert (gradient[:, :, ~columns.allowed_NK] == 0).all()
    assert (gradient[:, :, : columns.queries, list(columns.things)] != 0).any()
    part_columns = range(len(columns.classes), columns.no_object)
    assert (gradient[:, :, : columns.queries, list(part_columns)] == 0).all()


def test_without_part_labels_the_part_queries_have_no_loss() -> None:
    task = task_of()
    model, data, guide = ready(task, STREETS + ",parts=no")
    guess = model.backbone(batch_of(data)[0])
    targets = targets_of(batch_of(data)[1:], task.columns)
    aims = losses.aims_of(targets, match(guess.mask_BNhw[0][:, :8], None, targets), task.columns)
    assert not aims.told_BN[:, task.columns.part_rows].any()
    assert not aims.found_BN[:, task.columns.part_rows].any()
    assert task.owned(data) == {}
    model.zero_grad()
    task.loss(model, batch_of(data), guide)[0].backward()
    assert all(p.grad is None for p in model.backbone.parts.parameters()), "only owners may move them"


def test_the_owners_of_part_keys_are_clients_with_part_labels() -> None:
    task = task_of()
    model, data, _ = ready(task)
    owned = task.owned(data)
    assert set(owned) == {key for key in model.state_dict() if key.startswith(PARTS)}
    assert set(owned.values()) == {data.with_parts}
    assert {task.combining(key) for key in owned} == {"owners"}
    assert all(task.combining(key) == "mean" for key in model.state_dict() if key not in owned)


# ---- reasoning --------------------------------------------------------------------------------------------------


def _stage(*, attends: bool) -> tuple[JointStage, tuple[Tensor, ...]]:
    torch.manual_seed(1)
    stage = JointStage(16, 4)
    if not attends:
        stage.attention.attention.out_proj.weight.data.zero_()
        stage.attention.attention.out_proj.bias.data.zero_()
    return stage, (
        torch.randn(2, 7, 16),
        torch.randn(2, 7, 6, 6),
        torch.randn(2, 16, 6, 6),
        torch.randn(2, 16, 6, 6),
    )


@pytest.mark.parametrize("attends", [True, False])
def test_part_queries_change_thing_masks_only_through_self_attention(attends: bool) -> None:
    stage, (query, mask, scene, part) = _stage(attends=attends)
    wholes = torch.zeros(2, 6, 6, dtype=torch.bool)
    all_of_them = stage(query, mask, scene, part, wholes, 3, 5)[2]
    without_parts = stage(query[:, :5], mask[:, :5], scene, part, wholes, 3, 5)[2]
    difference = float((all_of_them[:, :3] - without_parts[:, :3]).abs().max().detach())
    assert (difference > 1e-4) == attends


def test_features_outside_a_mask_do_not_reach_its_query() -> None:
    mask, feat = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5)
    other = torch.where((mask[:, :1] > 0), feat, torch.randn_like(feat) * 100)
    torch.testing.assert_close(grouped(mask, feat)[:, 0], grouped(mask, other)[:, 0])
    assert not torch.allclose(grouped(mask, feat)[:, 1], grouped(mask, other)[:, 1])


def test_without_flow_the_aligned_decoder_is_resizing_and_adding() -> None:
    torch.manual_seed(2)
    decoder = AlignedDecoder((8, 16, 16), 16)
    maps = [torch.randn(2, c, h, w) for c, h, w in ((8, 12, 15), (16, 6, 8), (16, 3, 4))]
    found = decoder.lateral[2](maps[2])
    levels = [found]
    for level in (1, 0):
        low = decoder.lateral[level](maps[level])
        found = low + F.interpolate(found, low.shape[2:], mode="bilinear", align_corners=False)
        levels.append(found)
    plain = sum(F.interpolate(each, (12, 15), mode="bilinear", align_corners=False) for each in levels)
    torch.testing.assert_close(decoder(maps), decoder.out(plain), atol=1e-5, rtol=1e-5)


def test_a_flow_of_one_pixel_moves_the_map_by_one_pixel() -> None:
    flow = Flow(8)
    high = torch.randn(1, 8, 6, 6)
    flow.flow.weight.data.zero_()
    flow.flow.bias = torch.nn.Parameter(torch.tensor([1.0, 0.0]))  # right
    torch.testing.assert_close(flow(torch.zeros(1, 8, 6, 6), high)[..., :-1], high[..., 1:], atol=1e-5, rtol=1e-5)
    assert base_grid(6, 4, high).shape == (1, 6, 4, 2)


@pytest.mark.parametrize("channels", [8, 10, 30])
def test_the_encoding_tells_places_apart(channels: int) -> None:
    code = sine_encoding(torch.zeros(1, channels, 5, 7))[0].flatten(1).T
    assert code.shape == (35, channels)
    assert float(torch.cdist(code, code).fill_diagonal_(9).min()) > 1e-3


def test_masked_attention_gives_no_weight_outside_and_survives_empty_masks() -> None:
    torch.manual_seed(3)
    layer = MaskedAttention(16, 4)
    query, token = torch.randn(2, 3, 16), torch.randn(2, 9, 16)
    allowed = torch.rand(2, 3, 9) < 0.5
    allowed[0, 0] = False  # sees everything
    allowed[1, 1] = True
    _, weight = layer.attention(query, token, token, attn_mask=layer.blocked(allowed))
    assert (weight[~allowed & allowed.any(dim=2, keepdim=True)] == 0).all()
    assert (weight[0, 0] > 0).all()
    found = layer(query, token, allowed)
    assert found.isfinite().all()
    unseen = token.clone()
    unseen[~allowed[:, 2]] = 99.0
    torch.testing.assert_close(layer(query, unseen, allowed)[:, 2], found[:, 2])


@pytest.mark.parametrize("decoder", ["joint", "masked"])
@pytest.mark.parametrize("stages", [1, 3])
def test_every_stage_and_the_first_masks_have_a_loss(decoder: str, stages: int) -> None:
    task = task_of(decoder=decoder, stages=stages)
    model, data, guide = ready(task)
    total, parts = task.loss(model, batch_of(data), guide)
    assert sum(name.startswith("masks") for name in parts) == stages + 1
    torch.testing.assert_close(total.detach(), torch.stack(list(parts.values())).sum(), atol=1e-4, rtol=1e-4)
    total.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == []


def test_a_class_prior_is_about_how_often_a_client_has_each_thing_and_nothing_else() -> None:
    """Not about how many queries find nothing, or how many pictures have sky."""
    task = task_of()
    model, data, guide = ready(task)
    things = torch.tensor(task.columns.things)

    def loss(count_K: Tensor) -> Tensor:
        return task.loss(model, batch_of(data), replace(guide, count_K=count_K))[0].detach()

    others = guide.count_K * 50
    others[things] = guide.count_K[things]
    torch.testing.assert_close(loss(others), loss(guide.count_K))
    torch.testing.assert_close(loss(guide.count_K * 7), loss(guide.count_K))
    skewed = guide.count_K.clone()
    skewed[things[0]] = 50 * skewed[things].max()
    assert abs(float(loss(skewed) - loss(guide.count_K))) > 1e-3
    alike = torch.ones_like(guide.count_K)
    plain = replace(guide, method=guide.method.model_copy(update={"loss": "ce"}))
    torch.testing.assert_close(loss(alike), task.loss(model, batch_of(data), plain)[0].detach())


def test_void_and_crowd_pixels_are_not_judged() -> None:
    task = task_of()
    model, data, guide = ready(task)
    batch = list(batch_of(data))
    batch[1] = batch[1].clone()
    batch[1][:, :, :9] = VOID
    crowd = batch[2].clone()
    crowd[:, 12:] = -1
    batch[2] = crowd
    targets = targets_of(batch[1:], task.columns)
    assert not targets.judged_Bhw[:, :, :5].any()
    assert not targets.thing_BQhw[:, :, 6:].any()
    before = task.loss(model, tuple(batch), guide)[0]
    changed = batch[3].clone()
    changed[:, :, :9] = 1
    torch.testing.assert_close(task.loss(model, (*batch[:3], changed), guide)[0], before)


# ---- merging ----------------------------------------------------------------------------------------------------


def test_perfect_masks_and_scores_are_merged_into_the_truth() -> None:
    task = task_of()
    _, data, _ = ready(task)
    batch, columns = batch_of(data), task.columns
    targets = targets_of(batch[1:], columns)
    aims = losses.aims_of(targets, match(targets.thing_BQhw * 18.0 - 9, None, targets), columns)
    share = torch.nn.functional.one_hot(aims.column_BN, task.label_space).float()
    guess = merged(torch.where(aims.mask_BNhw, 9.0, -9.0), share, columns, 0.3, 0.6)
    found = task.measured_by[0].quality(
        task.measured_by[0].sums(guess, torch.stack(batch[1:], dim=1)[:, :, ::2, ::2])
    )
    assert (found.all, found.pq, found.part_miou, found.pwq_gm) == (1.0, 1.0, 1.0, 1.0)


def test_covered_and_unlikely_segments_are_dropped() -> None:
    columns = task_of(queries=2).columns
    mask = torch.full((1, columns.all_queries, 4, 8), -9.0)
    share = torch.zeros(1, columns.all_queries, columns.space)
    share[0, :, columns.no_object] = 1.0
    car, person = (columns.classes.index(name) for name in ("car", "person"))
    mask[0, 0, :, :4], share[0, 0, car] = 9.0, 0.9
    mask[0, 1, :, 1:6], share[0, 1, person] = 9.0, 0.6  # 2 of its 5 columns are left
    found = merged(mask, share, columns, 0.3, 0.6)[0]
    assert found[0].tolist() == [[car] * 4 + [VOID] * 4] * 4
    assert found[1, 0].tolist() == [0] * 4 + [-1] * 4
    kept = merged(mask, share, columns, 0.3, 0.3)[0]
    assert kept[0, 0].tolist() == [car] * 4 + [person] * 2 + [VOID] * 2
    assert (merged(mask, share, columns, 0.95, 0.6)[0][0] == VOID).all()


def test_every_pixel_of_a_whole_gets_its_most_likely_part_however_unlikely() -> None:
    """Labelled pixels of a class with parts have a part, so `unknown` could only be wrong."""
    columns = task_of().columns
    car, first = columns.classes.index("car"), columns.part_rows.start
    own = [row for row, (whole, _) in enumerate(columns.parts) if whole == car]
    mask = torch.full((1, columns.all_queries, 4, 6), -9.0)
    share = torch.zeros(1, columns.all_queries, columns.space)
    share[0, :, columns.no_object], share[0, 0, car] = 1.0, 1.0
    mask[0, 0, :, :4] = 9.0
    for place, row in enumerate(own):
        mask[0, first + row, :, place] = -2.0
        share[0, first + row, len(columns.classes) + row] = 0.1
    part = merged(mask, share, columns, 0.3, 0.6)[0, 2, 0].tolist()
    assert part[: len(own)] == [columns.parts[row][1] for row in own]
    assert part[4:] == [0, 0]


def test_scores_of_the_memory_read_out_are_finite_before_there_is_a_memory() -> None:
    task = task_of()
    model, data, guide = ready(task)
    with torch.no_grad():
        maps = task.scores(model, batch_of(data)[0], guide)
        score = logits_of(model, model.features(batch_of(data)[0]), guide)
    assert maps.shape == (6, 3, 24, 32)
    assert score.isfinite().all()


# ---- cost -------------------------------------------------------------------------------------------------------

SCENE_ONLY = ("scene", "thing_features", "stuff_features", "class_kernels")


def cost_of(shape: NetworkShape, size: tuple[int, int], without: tuple[str, ...] = ()) -> tuple[int, int]:
    """(parameters, floating-point operations of one picture), less those of some modules."""
    model = PartFormer(shape).requires_grad_(False)
    left = tuple(f"{name}." for name in without) or ("-",)
    params = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(left))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *size))
    counts = counter.get_flop_counts()
    less = sum(sum(counts[f"PartFormer.{name}"].values()) for name in without)
    return params, counter.get_total_flops() - less


@pytest.mark.parametrize(("masked", "parameters", "operations"), [(False, 0.60, 0.81), (True, 0.58, 0.78)])
def test_one_network_costs_less_than_one_for_scenes_and_one_for_parts(
    masked: bool, parameters: float, operations: float
) -> None:
    """Beside two networks of our own kind, each with a backbone: the figures of docs/panoptic.md."""
    joint = replace(task_of(width=32, pyramid=[16, 24, 32]).shape, masked=masked)
    scene = cost_of(replace(joint, wholes=()), (40, 40))
    parts = cost_of(replace(joint, things=1, stuff=(), classes=1), (40, 40), SCENE_ONLY)
    both = cost_of(joint, (40, 40))
    ratio = tuple(one / (first + second) for one, first, second in zip(both, scene, parts, strict=True))
    assert ratio == pytest.approx((parameters, operations), abs=0.005)
