"""Warps, line art, losses, networks and metrics, each against a property or a second way."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednc.common.errors import ConfigError, ProtocolError
from fednc.common.tasks.api import add_stats
from fednc.common.tasks.evaluation import evaluate
from fednc.common.tasks.round_guide import first_guide
from fednc.tasks.colorize.line_art import lines_of
from fednc.tasks.colorize.metrics import FDRand, frechet, ssim
from fednc.tasks.colorize.perceptual import FOLDER, FrozenFeatures, gram, perceptual_network, picture_features
from fednc.tasks.colorize.warp import draw_points, spline, warped
from support.colour_tasks import colour_task, drawn

CPU = torch.device("cpu")
DATA = "characters:images=10,test=9,seed=2,artist=all/3"


# ---- warps ---------------------------------------------------------------------------------------------------


def test_a_warp_without_a_shift_changes_nothing() -> None:
    picture = drawn(3, 3, 12, 17)
    points, same = draw_points(3, 0.0, torch.Generator().manual_seed(1))
    assert torch.equal(points, same)
    torch.testing.assert_close(warped(picture, points, same), picture, rtol=1e-4, atol=1e-4)


def test_control_points_go_where_they_should_and_corners_stay() -> None:
    points, moved = draw_points(20, 0.25, torch.Generator().manual_seed(1))
    torch.testing.assert_close(spline(points.double(), moved.double(), points.double()), moved.double())
    assert torch.equal(points[:, :4], moved[:, :4])
    assert float((points[:, 4:] - moved[:, 4:]).abs().max()) <= 0.25
    assert torch.equal(points[..., 0], points[..., 1]) or bool((points[:, 4:, 0] == points[:, 4:, 1]).all())
    picture = drawn(20, 3, 32, 32)
    corner = warped(picture, points, moved)[:, :, 0, 0]
    assert float((corner - picture[:, :, 0, 0]).abs().mean()) < 0.6  # half a pixel beside the corner itself


# ---- line art ------------------------------------------------------------------------------------------------


def test_line_art_has_no_line_in_a_flat_picture_and_one_between_two_colours_of_one_brightness() -> None:
    flat = torch.full((1, 3, 16, 16), 77, dtype=torch.uint8)
    assert int(lines_of(flat).min()) == 255
    two = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    two[:, 0, :, :8], two[:, 1, :, 8:] = 196, 100  # red and green, both of brightness 58
    found = lines_of(two)[0, 0]
    assert int(found[8, 6:10].min()) < 60
    assert int(found[8, :4].min()) == int(found[8, 12:].min()) == 255


# ---- frozen networks -----------------------------------------------------------------------------------------


def test_frozen_networks_are_the_same_everywhere_and_draw_no_number_of_the_run() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    perceptual_network.cache_clear()
    picture_features.cache_clear()
    one, two = perceptual_network(4, "", CPU), picture_features(CPU)
    assert torch.equal(torch.rand(1), expected)
    assert not any(p.requires_grad for p in (*one.parameters(), *two.parameters()))
    assert float(one.layers[0].weight.sum()) == pytest.approx(0.78993, abs=1e-4)
    assert float(two.layers[0].weight.sum()) == pytest.approx(9.39388, abs=1e-4)


def test_weights_of_ones_own_are_found_by_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = FrozenFeatures(64)
    state = {
        f"features.{place}.{part}": getattr(network.layers[number], part).detach().clone()
        for number, place in enumerate((0, 2, 5, 7))
        for part in ("weight", "bias")
    }
    content = safetensors.torch.save(state)
    digest = sha256(content).hexdigest()
    (tmp_path / f"{digest}.safetensors").write_bytes(content)
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(ConfigError, match=FOLDER):
        perceptual_network(64, digest, CPU)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    found = perceptual_network(64, digest, CPU)
    assert torch.equal(found.layers[3].weight, network.layers[3].weight)
    assert found.mean_C11.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])  # as VGG19 was trained
    other = "0" * 64
    (tmp_path / f"{other}.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match="another SHA-256"):
        perceptual_network(64, other, CPU)
    with pytest.raises(ConfigError, match="perceptual_width = 64"):
        colour_task(perceptual_weights=digest)


def test_gram_matrices_of_a_sample_do_not_depend_on_the_batch_and_published_ones_do() -> None:
    feat = drawn(3, 4, 5, 6)
    each = torch.cat([gram(one[None], "sample") for one in feat])
    torch.testing.assert_close(gram(feat, "sample"), each)
    whole = gram(feat, "batch")
    assert whole.shape == (12, 12)
    torch.testing.assert_close(whole[:4, :4] * 3, each[0])  # the diagonal blocks, over a larger count
    assert float(whole[:4, 4:8].abs().max()) > 0  # terms between two pictures


# ---- metrics -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_ssim_is_that_of_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    one = torch.rand(4, 3, 24, 31, generator=torch.Generator().manual_seed(1))
    two = (one + 0.2 * drawn(4, 3, 24, 31)).clamp(0, 1)
    wanted = [
        structural_similarity(
            a.permute(1, 2, 0).double().numpy(),
            b.permute(1, 2, 0).double().numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=2,
        )
        for a, b in zip(one, two, strict=True)
    ]
    np.testing.assert_allclose(ssim(one, two).numpy(), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(ssim(one, one), torch.ones(4).double())


def test_the_distance_of_two_gaussians_is_that_of_a_matrix_square_root() -> None:
    from scipy.linalg import sqrtm

    a, b = drawn(40, 5).double(), (drawn(50, 5, seed=1) * 1.5 + 0.3).double()
    parts = [(x.mean(dim=0), torch.cov(x.T, correction=0)) for x in (a, b)]
    (m1, s1), (m2, s2) = parts
    wanted = float((m1 - m2).square().sum()) + np.trace(s1 + s2 - 2 * sqrtm((s1 @ s2).numpy()).real)
    assert frechet(m1, s1, m2, s2) == pytest.approx(float(wanted), rel=1e-6)
    assert frechet(m1, s1, m1, s1) == pytest.approx(0, abs=1e-9)


@settings(max_examples=5, deadline=None)
@given(cut=st.integers(1, 8), batch=st.integers(1, 9))
def test_every_metric_of_shards_is_that_of_all_pictures(cut: int, batch: int) -> None:
    task = colour_task()
    torch.manual_seed(0)
    model, data = task.build_model(), task.load_test(DATA)
    guide = first_guide(task, data.count_K)
    shards = [data.select(np.arange(cut)), data.select(np.arange(cut, data.examples))]
    added = task.no_statistics()
    for shard in shards:
        add_stats(added, evaluate(task, model, shard, guide, batch))
    pooled = evaluate(task, model, data, guide, 9)
    one, other = task.measure(added), task.measure(pooled)
    assert one.keys() == other.keys() >= {"l1", "ssim", "fd_rand", "colour_error", "colour_error_own"}
    for name, value in one.items():
        assert value == pytest.approx(other[name], abs=1e-6), name
    assert task.check_statistics(added, data.examples)


def test_a_picture_in_the_colours_of_its_reference_has_no_colour_error_and_the_true_one_has_the_own_error() -> (
    None
):
    task = colour_task()
    data = task.load_test(DATA)
    ((inputs, truth, region, other),) = data.eval_batches(9)
    metric = task.measured_by[-1]
    target = torch.cat([(truth + 1) / 2, (inputs[:, 1:] + 1) / 2, region[:, None], other[:, None]], dim=1)
    ideal = torch.zeros_like(truth)
    for picture, goal in zip(ideal, target, strict=True):
        for number in range(6):
            here, there = goal[6] == number, goal[7] == number
            if there.any():
                picture[:, here] = goal[3:6][:, there].median(dim=1).values[:, None]
    stats = metric.sums(torch.cat([ideal, ideal], dim=1), target)
    assert metric.value(stats, 9) == pytest.approx(0, abs=1e-6)
    stats = metric.sums(torch.cat([target[:, :3], target[:, :3]], dim=1), target)
    found = metric.details(stats, 9, ())
    assert metric.value(stats, 9) == pytest.approx(found["colour_error_own"])
    assert found["colour_error_own"] > 0.1


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("fd_made_D", lambda x: x + 100, "above 1"),
        ("fd_real_DD", lambda x: x + torch.triu(torch.ones_like(x), 1) * 0.1, "order"),
        ("fd_made_DD", lambda x: x * 0, "negative variance"),
        ("ssim_sum", lambda x: x + 100, "similarity"),
        ("colour_count_R", lambda x: x + 100, "more regions"),
        ("colour_own_R", lambda x: x - 100, "no two colours"),
        ("l1_sum", lambda x: x - 100, "errors"),
        ("l1_sum", lambda x: x * 0 + 10, "above 1"),
        ("l1_sum", lambda x: x * 0 + 2.0**53, "above 1"),
    ],
)
def test_statistics_that_no_pictures_have_are_refused(name: str, change, said: str) -> None:
    task = colour_task()
    torch.manual_seed(0)
    data = task.load_test(DATA)
    stats = evaluate(task, task.build_model(), data, first_guide(task, data.count_K), 9)
    assert task.check_statistics(stats, 9)
    with pytest.raises(ProtocolError, match=said):
        task.check_statistics({**stats, name: change(stats[name])}, 9)


def test_fd_rand_is_never_called_fid_and_grows_with_the_difference() -> None:
    metric = FDRand()
    assert metric.name == "fd_rand"
    picture = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def distance(shift: float) -> float:
        other = (picture * (1 - shift) + shift * torch.tensor([1.0, 0.0, 0.0])[:, None, None]).clamp(0, 1)
        output, target = torch.cat([other, other], dim=1), torch.cat([picture, picture, picture[:, :2]], dim=1)
        return metric.value(metric.sums(output, target), 30)

    assert distance(0.0) == pytest.approx(0, abs=1e-6)
    assert distance(0.1) < distance(0.3) < distance(0.6)
