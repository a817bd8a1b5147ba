"""The mechanisms of CeCo, one by one: centres, gradients, frame, prior, the off switch, geometry, federation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError
from fednc.common.learning.class_memory import ClassSums
from fednc.common.learning.frame import draw_frame, unit
from fednc.common.tasks import discovery
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import add_stats
from fednc.tasks.dense.maps import VOID
from fednc.tasks.segmentation.ceco import (
    CentreBranch,
    centre_loss,
    centres,
    log_prior,
    mixed_with_memory,
    rare_share,
)
from fednc.tasks.segmentation.task import SegmentationTask, as_segmenter
from support.segmentation_tasks import CLASSES, guide_of, segmentation_task

K, D = len(CLASSES), 8


def drawn(pixels: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    label_P = torch.randint(0, K - 1, (pixels,), generator=random)  # the last class never occurs
    return torch.randn(pixels, D, generator=random, requires_grad=True), label_P


def plain(**changes: Any) -> CentreBranch:
    """A branch without anything random and without statistics of the batch."""
    return CentreBranch(K, D, 3, **{"reduced": 16, "width": 12, "dropout": 0.0, "norm": False, **changes})


def naive_loss(branch: CentreBranch, feat_PD: Tensor, label_P: Tensor) -> Tensor:
    """Every pixel reduced and normalised, a loop over classes."""
    reduced_PR = feat_PD @ branch.reduce_RD.T
    if branch.norm:
        reduced_PR = F.batch_norm(reduced_PR, None, None, training=True)
    terms = []
    for label in sorted(set(label_P.tolist())):
        centre_R = reduced_PR[label_P == label].mean(dim=0)
        found_W = F.linear(centre_R, branch.gain_WR, branch.bias_W)
        found_W = found_W.relu() if branch.relu else found_W
        logit_K = branch.scale * (branch.frame_KW @ (found_W / found_W.norm())) + branch.log_prior_K
        terms.append(F.cross_entropy(logit_K[None], torch.tensor([label])))
    return torch.stack(terms).mean()


# ---- 1: centres


def test_centres_are_those_of_a_loop_and_absent_classes_make_no_term() -> None:
    feat_PD, label_P = drawn()
    centre_KD, count_K = centres(feat_PD, label_P, K)
    for label in range(K - 1):
        torch.testing.assert_close(centre_KD[label], feat_PD[label_P == label].mean(dim=0))
    assert count_K[K - 1] == 0
    assert not centre_KD[K - 1].any()
    branch = plain()
    before = branch(feat_PD, label_P)
    branch.image_count_K[:] = torch.tensor([5.0, 5.0, 5.0, 5.0])
    assert torch.equal(branch(feat_PD, label_P), before)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_the_branch_equals_one_that_reduces_every_pixel(norm: bool, relu: bool) -> None:
    branch = plain(norm=norm, relu=relu)
    branch.image_count_K[:] = torch.tensor([9.0, 3.0, 1.0, 2.0])
    feat_PD, label_P = drawn()
    loss, naive = branch(feat_PD, label_P), naive_loss(branch, feat_PD, label_P)
    torch.testing.assert_close(loss, naive, rtol=1e-4, atol=1e-5)
    (ours_PD,), (theirs_PD,) = torch.autograd.grad(loss, feat_PD), torch.autograd.grad(naive, feat_PD)
    torch.testing.assert_close(ours_PD, theirs_PD, rtol=1e-3, atol=1e-6)


def test_void_pixels_have_no_influence() -> None:
    task = segmentation_task(ceco=0.4, ceco_dropout=0.0)
    model, guide = task.build_model(), guide_of(task)
    random = torch.Generator().manual_seed(1)
    pixel_BCHW = torch.randn(2, 3, 16, 16, generator=random)
    label_BHW = torch.randint(0, K, (2, 16, 16), generator=random)
    label_BHW[:, :, 8:] = VOID
    feat_BHWD = as_segmenter(model).features(pixel_BCHW).detach().requires_grad_()
    model.features = lambda inputs: feat_BHWD  # type: ignore[method-assign, assignment]
    loss, parts = task.loss(model, (pixel_BCHW, label_BHW), guide)
    (gradient,) = torch.autograd.grad(loss, feat_BHWD)
    assert parts["ceco"] > 0
    assert not gradient[:, :, 8:].any()
    assert gradient[:, :, :8].any()


# ---- 2: gradients


def test_a_class_gets_the_same_gradient_however_many_pixels_it_has() -> None:
    feat_PD, label_P = drawn(60)
    copies_P = torch.where(label_P == 1, 50, 1)
    many_PD = feat_PD.detach().repeat_interleave(copies_P, dim=0).requires_grad_()
    many_P = label_P.repeat_interleave(copies_P)
    branch = plain()
    one, other = branch(feat_PD, label_P), branch(many_PD, many_P)
    torch.testing.assert_close(one, other)
    (few_PD,), (lots_PD,) = torch.autograd.grad(one, feat_PD), torch.autograd.grad(other, many_PD)
    for label in range(K - 1):
        few, lots = few_PD[label_P == label].sum(dim=0), lots_PD[many_P == label].sum(dim=0)
        torch.testing.assert_close(few, lots, rtol=1e-4, atol=1e-6)


def test_normalised_over_the_pixels_the_gradient_of_a_class_depends_a_little_on_its_pixels() -> None:
    """Mean and variance, by which centres are then normalised, are those of all pixels."""
    feat_PD, label_P = drawn(60)
    totals = []
    for copies in (1, 10, 100, 1000):
        many_P = label_P.repeat_interleave(torch.where(label_P == 1, copies, 1))
        many_PD = feat_PD.detach().repeat_interleave(torch.where(label_P == 1, copies, 1), dim=0).requires_grad_()
        (gradient_PD,) = torch.autograd.grad(plain(norm=True)(many_PD, many_P), many_PD)
        totals.append(float(gradient_PD[many_P == 1].norm(dim=1).sum()))
    assert 1.05 < max(totals) / min(totals) < 2  # and not a thousand


# ---- 3: frame and inference


def test_the_frame_is_a_simplex_and_training_does_not_change_it() -> None:
    branch = CentreBranch(K, D, 3, trainable=True)
    before = branch.frame_KW.clone()
    gram_KK = before @ before.T
    torch.testing.assert_close(gram_KK, torch.full((K, K), -1 / (K - 1)).fill_diagonal_(1.0), rtol=0, atol=1e-5)
    optimiser = torch.optim.SGD(branch.parameters(), lr=1.0)
    weights = branch.gain_WR.detach().clone()
    branch(*drawn()).backward()
    optimiser.step()
    assert torch.equal(branch.frame_KW, before)
    assert not torch.equal(branch.gain_WR, weights)


@pytest.mark.parametrize("trainable", [False, True])
def test_the_inference_model_has_no_branch_and_gives_the_same_scores(trainable: bool) -> None:
    task = segmentation_task(ceco=0.4, ceco_trainable=trainable)
    model, guide = task.build_model().eval(), guide_of(task)
    inference = task.inference_model(model)
    branch = {key for key in model.state_dict() if key.startswith("centres.")}
    assert branch == {"centres.image_count_K"} | (
        {f"centres.{name}" for name in ("reduce_RD", "gain_WR", "bias_W")} if trainable else set()
    )
    assert set(inference.state_dict()) == set(model.state_dict()) - branch
    pixel_BCHW = torch.randn(1, 3, 17, 13)
    assert torch.equal(task.scores(model, pixel_BCHW, guide), task.scores(inference, pixel_BCHW, guide))
    assert as_segmenter(model).centres is not None


def test_the_frozen_branch_follows_from_the_seed_and_is_not_sent() -> None:
    one, other = (CentreBranch(K, D, seed) for seed in (3, 4))
    assert torch.equal(one.gain_WR, CentreBranch(K, D, 3).gain_WR)
    assert not torch.equal(one.gain_WR, other.gain_WR)
    assert list(one.state_dict()) == ["image_count_K"]
    assert not list(one.parameters())


# ---- 4: prior


def test_the_prior_shifts_scores_and_a_uniform_one_does_nothing() -> None:
    frame_KW = draw_frame(K, 12, 0).etf_KD
    centre_CW, label_C = torch.randn(K, 12), torch.arange(K)
    count_K = torch.tensor([400.0, 100.0, 20.0, 5.0])
    logit_CK = 5.0 * unit(centre_CW) @ frame_KW.T
    expected = F.cross_entropy(logit_CK + torch.log(count_K / count_K.sum()), label_C)
    torch.testing.assert_close(centre_loss(centre_CW, label_C, frame_KW, log_prior(count_K), 5.0), expected)
    uniform = centre_loss(centre_CW, label_C, frame_KW, log_prior(torch.full((K,), 7.0)), 5.0)
    torch.testing.assert_close(uniform, centre_loss(centre_CW, label_C, frame_KW, None, 5.0))


# ---- 5: the off switch


def test_without_weight_nothing_is_built_and_the_rest_of_the_model_has_the_same_bits() -> None:
    off, on = segmentation_task(), segmentation_task(ceco=0.4)
    models = []
    for task in (off, on):
        torch.manual_seed(7)
        models.append(task.build_model())
        after = torch.rand(1)
        models[-1].drawn_after = after
    assert as_segmenter(models[0]).centres is None
    assert off.no_data_sums() == {}
    state = models[1].state_dict()
    assert all(torch.equal(value, state[key]) for key, value in models[0].state_dict().items())
    assert torch.equal(models[0].drawn_after, models[1].drawn_after)


def test_a_weight_that_is_almost_zero_trains_the_same_model() -> None:
    """The branch draws nothing in training either, without dropout."""
    trained = []
    for weight in (0.0, 1e-30):
        task = segmentation_task(ceco=weight, ceco_dropout=0.0)
        torch.manual_seed(7)
        model, random = task.build_model(), torch.Generator().manual_seed(1)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            batch = torch.randn(2, 3, 8, 8, generator=random), torch.randint(0, K, (2, 8, 8), generator=random)
            optimiser.zero_grad()
            task.loss(model, batch, guide_of(task))[0].backward()
            optimiser.step()
        trained.append(task.inference_model(model).state_dict())
    assert all(torch.equal(value, trained[1][key]) for key, value in trained[0].items())


# ---- 6: geometry of free features


def test_free_features_reach_equal_angles_in_spite_of_imbalance() -> None:
    count_K = [2000, 200, 20, 2]
    label_P = torch.arange(K).repeat_interleave(torch.tensor(count_K))
    frame_KW = draw_frame(K, D, 0).etf_KD
    cosines = {}
    for kind in ("ceco", "ce"):
        random = torch.Generator().manual_seed(0)
        feat_PD = torch.randn(len(label_P), D, generator=random, requires_grad=True)
        head = torch.nn.Linear(D, K)
        with torch.no_grad():
            head.weight.copy_(0.1 * torch.randn(K, D, generator=random))
        params = [feat_PD, *(head.parameters() if kind == "ce" else ())]
        optimiser = torch.optim.Adam(params, lr=0.05)
        for _ in range(400):
            optimiser.zero_grad()
            if kind == "ceco":
                centre_KD, _ = centres(feat_PD, label_P, K)
                loss = centre_loss(centre_KD, torch.arange(K), frame_KW, None, 5.0)
            else:
                loss = F.cross_entropy(head(feat_PD), label_P) + 5e-4 * sum(p.square().sum() for p in params)
            loss.backward()
            optimiser.step()
        mean_KD = unit(centres(feat_PD.detach(), label_P, K)[0])
        cosines[kind] = (mean_KD @ mean_KD.T)[~torch.eye(K, dtype=torch.bool)]
    torch.testing.assert_close(cosines["ceco"], torch.full_like(cosines["ceco"], -1 / (K - 1)), rtol=0, atol=0.02)
    assert (cosines["ce"] + 1 / (K - 1)).abs().max() > 0.1


# ---- 7 is tests/tasks_long/segmentation/test_training.py
# ---- 8: federation


def test_summed_counts_give_the_pooled_prior_and_summed_centres_the_pooled_centres() -> None:
    task = segmentation_task(ceco=0.4)
    whole = task.load_train("scenes:images=30,tail=0.5,objects=2", None, None)
    shards = [whole.select(index) for index in (range_of(0, 11), range_of(11, 19), range_of(19, 30))]
    total = task.no_data_sums()
    for shard in shards:
        add_stats(total, task.data_sums(shard, 1))
    pooled, summed = task.build_model(), task.build_model()
    task.with_data_sums(pooled, task.data_sums(whole, 1))
    task.with_data_sums(summed, total)
    assert torch.equal(as_segmenter(pooled).centres.log_prior_K, as_segmenter(summed).centres.log_prior_K)
    assert as_segmenter(pooled).centres.image_count_K.tolist() == whole.having_K.tolist()
    model = task.build_model().eval()
    found = [ClassSums.zeros(K, D, moment=True) for _ in range(4)]
    for sums, data in zip(found, (whole, *shards), strict=True):
        for batch in data.eval_batches(1):  # convolutions round by batch size
            sums.add_batch(*task.embed(model, batch))
        assert torch.equal(sums.count_K, data.count_K)
    added = found[1] + found[2] + found[3]
    assert torch.equal(added.sum_KD, found[0].sum_KD)
    assert torch.equal(added.moment_DD, found[0].moment_DD)


def range_of(first: int, end: int) -> Any:
    return torch.arange(first, end).numpy()


def test_the_counts_are_fixed_and_a_class_of_few_pictures_is_not_told() -> None:
    task = segmentation_task(ceco=0.4)
    assert task.aggregation("centres.image_count_K") == Aggregation.FIXED
    data = task.load_train("scenes:images=30,tail=0.05,objects=2", None, None)
    rare = int(data.having_K.argmin())
    sums = task.data_sums(data, int(data.having_K[rare]) + 1)
    assert sums["images_K"][rare] == sums["pixels_K"][rare] == 0
    assert sums["images_K"].count_nonzero() == K - 1


def test_rare_classes_are_mixed_with_the_memory_without_gradient_to_it() -> None:
    centre_KD = torch.randn(K, D, requires_grad=True)
    mean_KD = unit(torch.randn(K, D)).requires_grad_()
    count_K, seen_K = torch.tensor([900, 80, 20, 0]), torch.tensor([True, True, False, True])
    share_K = rare_share(count_K, seen_K, 0.25, 0.5)
    assert share_K.tolist() == [0.0, 0.25, 0.0, 0.25]  # frequent; rare; rare, but never seen; absent here
    found_KD = mixed_with_memory(centre_KD, torch.tensor(3.0), mean_KD, share_K)
    torch.testing.assert_close(found_KD[1], 0.75 * centre_KD[1] + 0.25 * 3.0 * mean_KD[1])
    torch.testing.assert_close(found_KD[0], centre_KD[0])
    found_KD.sum().backward()
    assert mean_KD.grad is None
    torch.testing.assert_close(centre_KD.grad, (1 - share_K)[:, None].expand(K, D))


def test_mixing_needs_a_memory() -> None:
    with pytest.raises(ConfigError, match=r"ceco_memory.*set method.readout"):
        segmentation_task(ceco=0.4, ceco_memory=0.5)
    segmentation_task({"readout": "memory"}, ceco=0.4, ceco_memory=0.5)


def test_a_run_file_may_only_have_known_keys() -> None:
    for keys, complaint in (
        ({"tail": ["cat"]}, "tail: 'cat' is not one of task.classes"),
        ({"tail": ["disc"], "common": ["disc"]}, "name it in one of the two"),
        ({"classes": ["a", "void"]}, "'void' is one of task.classes"),
        ({"crop": [32, 8]}, "larger than the pictures"),
        ({"tile": 16, "overlap": 16}, "must be smaller than tile"),
        ({"model": "deeplab", "backbone": "vgg"}, "task.backbone"),
        ({"cecoo": 1}, "cecoo"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            segmentation_task(**keys).build_model()


def test_the_task_is_found_by_its_name() -> None:
    task = discovery.get(parse_run({"task": {"name": "segmentation", "classes": list(CLASSES)}}))
    assert isinstance(task, SegmentationTask)
