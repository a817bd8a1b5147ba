"""Metrics of coloured pictures, all from additive sums: L1, SSIM, the distance FD-rand, colours of each region.

Output [B, 6, H, W] is two results: with the true picture as the reference, and with another one. Target
[B, 8, H, W] is the true picture, the other reference, and the numbers of both pictures' regions. Pictures have
values of 0 to 1.

Legend: B batch, C channels, H height, W width, D features, R regions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.tasks.metrics import MAE, SUM_STEP, Metric, Stats, exact, refuse_unless, sum_zero
from fednc.tasks.colorize.line_art import gaussian
from fednc.tasks.colorize.perceptual import FEATURES, picture_features

OWN, OTHER = slice(0, 3), slice(3, 6)  # of the output
TRUTH, REFERENCE, REGION, REFERENCE_REGION = slice(0, 3), slice(3, 6), 6, 7  # of the target
_WINDOW, _SIGMA, _C1, _C2 = 5, 1.5, 0.01**2, 0.03**2  # SSIM's window reaches 5 pixels, so it has 11x11
_LEAST_PIXELS = 4  # of a region; fewer say nothing about its colour
_STEP = 2.0**-40  # as SUM_STEP; finer, since a root of a variance near 0 makes much of little: exact up to 8,192
_FARTHEST = math.sqrt(3)  # distance of two colours


class L1(MAE):
    """Mean absolute difference to the true picture, with the true picture as the reference."""

    name = "l1"

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        return super().sums(output[:, OWN], target[:, TRUTH])

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        return float(sums["l1_sum"]) / examples

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        super().check(sums, examples)
        refuse_unless(float(sums["l1_sum"]) <= examples * (1 + SUM_STEP), "a difference above 1")


def ssim(one_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    """float64 [B]: structural similarity, 1 for equal pictures of 0 to 1 (Wang et al. 2004).

    Gaussian window 11x11, sigma 1.5; the mean over channels and over the pixels whose window is in the picture.
    """
    weight_K = gaussian(_WINDOW, _SIGMA).to(one_BCHW.device)

    def local(value_BCHW: Tensor) -> Tensor:
        flat = value_BCHW.flatten(0, 1)[:, None]
        found = F.conv2d(F.conv2d(flat, weight_K[None, None, None]), weight_K[None, None, :, None])
        return found.reshape(*value_BCHW.shape[:2], *found.shape[2:])

    x, y = one_BCHW.double(), other_BCHW.double()
    mean_x, mean_y = local(x), local(y)
    var_x, var_y, cov = local(x * x) - mean_x**2, local(y * y) - mean_y**2, local(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + _C1) * (2 * cov + _C2)
    return (top / ((mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2))).mean(dim=(1, 2, 3))


class SSIM(Metric):
    """Structural similarity to the true picture, with the true picture as the reference."""

    name = "ssim"

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        return {"ssim_sum": sum_zero()}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        return {"ssim_sum": exact(ssim(output[:, OWN], target[:, TRUTH]))} if len(target) else self.zeros(0)

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        return float(sums["ssim_sum"]) / examples

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        refuse_unless(abs(float(sums["ssim_sum"])) <= examples * (1 + SUM_STEP), "a similarity above 1")


class FDRand(Metric):
    """Frechet distance of the results with other references to the true pictures, on a frozen random network.

    Not FID: the network is drawn from a seed, so only values of this metric can be compared with each other. From
    n, the sum and the sum of outer products of the features of both sets; covariances are divided by n.
    """

    name, higher_is_better = "fd_rand", False
    _SETS = ("made", "real")

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        found = {}
        for each in self._SETS:
            found[f"fd_{each}_D"] = torch.zeros(FEATURES, dtype=torch.float64)
            found[f"fd_{each}_DD"] = torch.zeros(FEATURES, FEATURES, dtype=torch.float64)
        return found

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        if not len(target):
            return self.zeros(0)
        found = {}
        network = picture_features(output.device)
        for each, picture in zip(self._SETS, (output[:, OTHER], target[:, TRUTH]), strict=True):
            feat_BD = network(picture.double() * 2 - 1)
            found[f"fd_{each}_D"] = _rounded(feat_BD).sum(dim=0)
            found[f"fd_{each}_DD"] = _rounded(feat_BD[:, :, None] * feat_BD[:, None]).sum(dim=0)
        return found

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        made, real = (gaussian_of(sums[f"fd_{e}_D"], sums[f"fd_{e}_DD"], examples) for e in self._SETS)
        return frechet(*made, *real)

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        for each in self._SETS:
            sum_D, sum_DD = sums[f"fd_{each}_D"], sums[f"fd_{each}_DD"]
            slack = 1e-6 * examples
            refuse_unless(bool((sum_D.abs() <= examples + slack).all()), "a feature above 1")
            refuse_unless(bool((sum_DD.abs() <= examples + slack).all()), "a product of features above 1")
            refuse_unless(torch.equal(sum_DD, sum_DD.T), "products of features that depend on their order")
            if examples:
                _, spread_DD = gaussian_of(sum_D, sum_DD, examples)
                least = float(torch.linalg.eigvalsh(spread_DD).min())
                refuse_unless(least >= -1e-5, "features with a negative variance")


def _rounded(value: Tensor) -> Tensor:
    return (value / _STEP).round() * _STEP


def gaussian_of(sum_D: Tensor, sum_DD: Tensor, examples: int) -> tuple[Tensor, Tensor]:
    """(mean [D], covariance [D, D]) of features with these sums."""
    mean_D = sum_D / examples
    return mean_D, sum_DD / examples - torch.outer(mean_D, mean_D)


def frechet(mean_D: Tensor, spread_DD: Tensor, other_D: Tensor, other_DD: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians."""
    value_D, vector_DD = torch.linalg.eigh(spread_DD)
    root_DD = vector_DD * value_D.clamp_min(0).sqrt() @ vector_DD.T
    inner_D = torch.linalg.eigvalsh(root_DD @ other_DD @ root_DD).clamp_min(0)
    spread = spread_DD.trace() + other_DD.trace() - 2 * inner_D.sqrt().sum()
    return float((mean_D - other_D).square().sum() + spread.clamp_min(0))


class ColourError(Metric):
    """How far the colours of each region are from the same region's in the reference, which is another picture.

    Distance of the median colours (red, green, blue of 0 to 1), the mean over pictures, then over regions. As
    details also each region, and `colour_error_own`: the same for a result with the true colours, which a model
    reaches that ignores the reference.
    """

    name, higher_is_better = "colour_error", False

    def __init__(self, regions: Sequence[str] = ()) -> None:
        self._regions = tuple(regions)

    def zeros(self, label_space: int) -> Stats:
        """See Metric."""
        del label_space
        count = len(self._regions)
        sums = {name: torch.zeros(count, dtype=torch.float64) for name in ("colour_error_R", "colour_own_R")}
        return {**sums, "colour_count_R": torch.zeros(count, dtype=torch.int64)}

    def sums(self, output: Tensor, target: Tensor) -> Stats:
        """See Metric."""
        found = self.zeros(0)
        for result, goal in zip(output[:, OTHER], target, strict=True):
            for region in range(len(self._regions)):
                here, there = goal[REGION] == region, goal[REFERENCE_REGION] == region
                if min(int(here.sum()), int(there.sum())) < _LEAST_PIXELS:
                    continue
                wanted = median_colour(goal[REFERENCE], there)
                found["colour_count_R"][region] += 1
                found["colour_error_R"][region] += exact((median_colour(result, here) - wanted).norm()[None]).cpu()
                own = median_colour(goal[TRUTH], here)
                found["colour_own_R"][region] += exact((own - wanted).norm()[None]).cpu()
        return found

    def value(self, sums: Mapping[str, Tensor], examples: int) -> float:
        """See Metric."""
        del examples
        return self._mean(sums["colour_error_R"], sums["colour_count_R"])

    def details(self, sums: Mapping[str, Tensor], examples: int, names: Sequence[str]) -> dict[str, float]:
        """`colour_error_own`, and `colour_error/<region>` for each region that occurs."""
        del examples, names
        count_R = sums["colour_count_R"]
        if not bool(count_R.any()):
            return {}
        each_R = (sums["colour_error_R"] / count_R).tolist()
        found = {f"{self.name}/{name}": value for name, value in zip(self._regions, each_R, strict=True)}
        own = self._mean(sums["colour_own_R"], count_R)
        return {f"{self.name}_own": own, **{name: value for name, value in found.items() if not math.isnan(value)}}

    def check(self, sums: Mapping[str, Tensor], examples: int) -> None:
        """See Metric."""
        count_R = sums["colour_count_R"]
        refuse_unless(bool(((count_R >= 0) & (count_R <= examples)).all()), "more regions than pictures")
        for name in ("colour_error_R", "colour_own_R"):
            fits_R = (sums[name] >= 0) & (sums[name] <= count_R * (_FARTHEST + 1e-6))
            refuse_unless(bool(fits_R.all()), "a distance of colours that no two colours have")

    @staticmethod
    def _mean(sum_R: Tensor, count_R: Tensor) -> float:
        known_R = count_R > 0
        return float((sum_R[known_R] / count_R[known_R]).mean()) if bool(known_R.any()) else math.nan


def median_colour(picture_3HW: Tensor, mask_HW: Tensor) -> Tensor:
    """float64 [3]: the median of each channel over the pixels of the mask."""
    return picture_3HW[:, mask_HW].double().median(dim=1).values
