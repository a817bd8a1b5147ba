"""Rotations change nothing: frames, the aligned layer, the network, and the position of the weights.

Legend: B batch, N points, K neighbours, C outputs.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from fednc.tasks.pointcloud import rotations, shapes
from fednc.tasks.pointcloud.alignment import AlignedLinear, closest_rotation, principal_axes
from fednc.tasks.pointcloud.network import Described, Level, PointNetwork, aligned_layers
from fednc.tasks.pointcloud.options import PointCloudOptions
from fednc.tasks.pointcloud.sampling import farthest_points, nearest_points, rows

SMALL = {"points": 96, "centres": (24, 8), "neighbours": (12, 6), "widths": (16, 24, 32)}


def _network(**keys: object) -> PointNetwork:
    torch.manual_seed(3)
    return PointNetwork(PointCloudOptions.model_validate({"classes": ["one"], **SMALL, **keys})).eval()


def _clouds(count: int, points: int = 96) -> Tensor:
    cloud_NP3, _ = shapes.make(count, points, "test")
    return cloud_NP3 - cloud_NP3.mean(dim=1, keepdim=True)


def _any_rotations(count: int, seed: int = 1) -> Tensor:
    drawn = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rotations.of_quaternions(drawn)


@torch.no_grad()
def _errors(network: PointNetwork, point_BN3: Tensor) -> Tensor:
    """max |F(PQ) - F(P)| / max |F(P)| of each cloud."""
    plain_BC = network(point_BN3)
    turned_BC = network(rotations.turned(point_BN3, _any_rotations(len(point_BN3))))
    return (turned_BC - plain_BC).abs().amax(dim=1) / plain_BC.abs().amax(dim=1)


@pytest.mark.parametrize("relative", [False, True], ids=["plain", "relative frames"])
def test_rotations_change_no_feature(relative: bool) -> None:
    """Up to rounding, in both precisions."""
    network, cloud_NP3 = _network(relative_frames=relative), _clouds(120)
    error_N = _errors(network, cloud_NP3)
    assert (error_N < 1e-4).float().mean() >= 0.99
    assert _errors(network.double(), cloud_NP3.double()).max() < 1e-10


def test_without_alignment_rotations_change_the_features() -> None:
    """So the tests above can fail."""
    assert _errors(_network(align=False), _clouds(40)).median() > 0.1


def test_turning_the_weights_changes_nothing() -> None:
    """W and WQ are the same layer."""
    network, cloud_NP3 = _network().double(), _clouds(20).double()
    other = copy.deepcopy(network)
    with torch.no_grad():
        for layer, turn_33 in zip(aligned_layers(other).values(), _any_rotations(3), strict=True):
            layer.weight.copy_(layer.weight @ turn_33)
        assert torch.allclose(network(cloud_NP3), other(cloud_NP3), atol=1e-10)


def test_axes_are_rotations_and_turn_with_the_points() -> None:
    """R'R = I and det R = 1; points turned by Q have the axes QR."""
    point_BK3 = torch.randn(50, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axes_B33, turn_B33 = principal_axes(point_BK3), _any_rotations(50)
    assert torch.allclose(axes_B33.transpose(1, 2) @ axes_B33, torch.eye(3).double().expand(50, 3, 3), atol=1e-12)
    assert torch.allclose(torch.linalg.det(axes_B33), torch.ones(50).double())
    turned_B33 = principal_axes(rotations.turned(point_BK3, turn_B33))
    assert torch.allclose(turned_B33, turn_B33 @ axes_B33, atol=1e-9)


def test_a_mirrored_cloud_has_other_features() -> None:
    """Rotations are ignored, not reflections: a left shoe is not a right one."""
    network, cloud_NP3 = _network().double(), _clouds(40).double()
    with torch.no_grad():
        plain_BC, mirrored_BC = network(cloud_NP3), network(cloud_NP3 * torch.tensor([-1.0, 1, 1]).double())
    change_B = (mirrored_BC - plain_BC).abs().amax(dim=1) / plain_BC.abs().amax(dim=1)
    assert change_B.median() > 0.01


def test_the_alignment_has_the_largest_response_of_all_rotations() -> None:
    """|P V U' W'|^2 = K C sum of products of the eigenvalues (von Neumann), and no rotation gives more."""
    generator = torch.Generator().manual_seed(2)
    point_K3 = torch.randn(30, 3, dtype=torch.float64, generator=generator) * torch.tensor([3.0, 1.5, 0.5])
    torch.manual_seed(0)
    layer = AlignedLinear(16, align=True).double()
    with torch.no_grad():
        best = layer(point_K3, principal_axes(point_K3)).square().sum()
        data_3 = torch.linalg.eigvalsh(point_K3.T @ point_K3 / 30)
        weight_3 = torch.linalg.eigvalsh(layer.weight.T @ layer.weight / 16)
        turned = rotations.turned(point_K3.expand(2000, 30, 3), _any_rotations(2000)) @ layer.weight.T
    assert torch.isclose(best, 30 * 16 * (data_3 * weight_3).sum(), rtol=1e-6)
    assert turned.square().sum(dim=(1, 2)).max() <= best * (1 + 1e-9)


def test_the_order_of_the_points_changes_nothing() -> None:
    """A cloud is a set."""
    network, cloud_NP3 = _network().double(), _clouds(20).double()
    order_P = torch.randperm(96, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert torch.allclose(network(cloud_NP3), network(cloud_NP3[:, order_P]), atol=1e-10)


def test_far_points_do_not_change_a_neighbourhood() -> None:
    """What lies outside of a neighbourhood has no influence on its description, bit by bit."""
    level = _network().levels[0]
    assert isinstance(level, Level)
    cloud_BN3 = _clouds(1)
    centre_B13 = cloud_BN3[:, :1]
    index_B1K = nearest_points(centre_B13, cloud_BN3, 12)
    moved_BN3 = cloud_BN3 + 5.0
    inside_K = index_B1K.flatten()
    moved_BN3[:, inside_K] = cloud_BN3[:, inside_K]
    described = [
        level.around(Described(points), centre_B13, index_B1K).feat_BNC for points in (cloud_BN3, moved_BN3)
    ]
    assert torch.equal(*described)
    assert set(nearest_points(centre_B13, moved_BN3, 12).flatten().tolist()) == set(inside_K.tolist())


@pytest.mark.parametrize(
    "flatten",
    [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.0])],
    ids=["plane", "line", "one point"],
)
def test_degenerate_clouds_have_finite_features_and_gradients(flatten: Tensor) -> None:
    """Where axes are not determined, any will do."""
    network = _network()
    out_BC = network(_clouds(4) * flatten)
    out_BC.sum().backward()
    assert out_BC.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_a_regular_lattice_is_a_limit_that_jitter_lifts() -> None:
    """Where eigenvalues and distances tie, rounding decides; 1 % of noise is enough."""
    side = torch.arange(5.0, dtype=torch.float64)
    cloud_P3 = torch.cartesian_prod(side, side, side)
    cloud_P3 = (cloud_P3 - cloud_P3.mean(dim=0)) / cloud_P3.norm(dim=1).max()
    network = _network(points=125).double()
    noise = torch.randn(125, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert _errors(network, (cloud_P3 + 0.01 * noise)[None].expand(10, -1, -1)).max() < 1e-10


def test_the_closest_rotation_is_closer_than_any_other() -> None:
    """And it is a rotation, also where a reflection would be closer."""
    generator = torch.Generator().manual_seed(6)
    weight_C3, target_C3 = (torch.randn(16, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    for target in (target_C3, weight_C3 @ torch.diag(torch.tensor([1.0, 1, -1]).double())):
        found_33 = closest_rotation(weight_C3, target)
        assert torch.allclose(found_33.T @ found_33, torch.eye(3).double(), atol=1e-12)
        assert torch.isclose(torch.linalg.det(found_33), torch.tensor(1.0).double())
        others = (weight_C3 @ _any_rotations(2000) - target).square().sum(dim=(1, 2))
        assert (weight_C3 @ found_33 - target).square().sum() <= others.min()


def test_farthest_points_are_the_same_points_after_a_rotation_and_are_spread_out() -> None:
    """They are distinct, and no other point is farther from all of them than they are from each other."""
    cloud_BN3 = _clouds(10).double()
    chosen_BM = farthest_points(cloud_BN3, 24)
    turned_BM = farthest_points(rotations.turned(cloud_BN3, _any_rotations(10)), 24)
    assert torch.equal(chosen_BM, turned_BM)
    for cloud_N3, chosen_M in zip(cloud_BN3, chosen_BM, strict=True):
        assert len(set(chosen_M.tolist())) == 24
        between_MM = torch.cdist(cloud_N3[chosen_M], cloud_N3[chosen_M]) + torch.eye(24) * 99
        assert torch.cdist(cloud_N3, cloud_N3[chosen_M]).amin(dim=1).max() <= between_MM.min() + 1e-12


def test_nearest_points_equal_a_sort_of_all_distances() -> None:
    """And rows at an index are those points."""
    cloud_BN3 = _clouds(5)
    centre_BM3 = cloud_BN3[:, :7]
    index_BMK = nearest_points(centre_BM3, cloud_BN3, 9)
    expected = (centre_BM3[:, :, None] - cloud_BN3[:, None]).norm(dim=3).sort(dim=2).indices[:, :, :9]
    assert torch.equal(index_BMK.sort(dim=2).values, expected.sort(dim=2).values)
    assert torch.equal(rows(cloud_BN3, index_BMK)[2, 3, 4], cloud_BN3[2, index_BMK[2, 3, 4]])


def test_rotations_are_rotations_and_a_tilt_has_its_angle() -> None:
    """Any kind has determinant 1; rotations about z leave z; a tilt leans the z axis by its angle."""
    generator = torch.Generator().manual_seed(7)
    for kind in ("none", "z", "so3"):
        turn_N33 = rotations.draw(kind, 20, generator).double()  # type: ignore[arg-type]
        assert torch.allclose(
            turn_N33 @ turn_N33.transpose(1, 2), torch.eye(3).double().expand(20, 3, 3), atol=1e-6
        )
        assert torch.allclose(torch.linalg.det(turn_N33), torch.ones(20).double(), atol=1e-6)
        if kind == "z":
            assert torch.allclose(turn_N33[:, 2, 2], torch.ones(20).double(), atol=1e-6)
    tilts = [rotations.tilt_of(part, 30.0, seed=1) for part in range(3)]
    assert all(torch.isclose(t[2, 2], torch.cos(torch.tensor(torch.pi / 6)), atol=1e-6) for t in tilts)
    assert not torch.allclose(tilts[0], tilts[1])
