"""Drift alarms: which client's class means are farther from the memory than sampling and custom explain.

The server feeds it the class sums of one exchange, as they arrive, for any classifier. Must not know where
features come from.

For client k and class c, with n examples here and N - n at the others, the difference d between its mean and the
mean of the others has covariance S_c (1/n + 1/(N - n)) if its examples are drawn as theirs are. So, as in
Hotelling's test,

    q = n (N - n) / N  d . A d / (s_c t)

is 1 on average. Here A is the inverse of S, the covariance around each client's own class means, and t is
tr(A S) / (1 - tr(A S) / freedom), which allows for A being made from the same examples. s_c is how much class c
varies compared with all classes: for unit features, 1 - |v_c|^2 over its mean. R_k is the mean of q over the
classes of client k.

Honest clients differ by custom too: other writers, other cameras. That adds b times the number of examples to R,
and b is the median over the other clients. Client k raises an alarm if R_k / (1 + b n_k) is too large for an F
distribution. Its degrees of freedom allow for how much q varies between the classes of a client (measured, because
features of one class vary in fewer directions than those of all), for custom varying in few directions (`CUSTOM`),
and for b being known from a few clients only.

The client farthest away is judged first, by how the others differ without it. If it raises the alarm, it is set
aside and the next is judged, so that it does not make others look far away.

Legend: K label space, D feature width, H classes that a client holds.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fednc.common.learning.class_memory import MOMENT_GRID_BITS, ClassSums, on_grid
from fednc.common.learning.covariance import inverse_covariance

FEWEST_CLIENTS = 3  # of two that differ, nobody knows which one drifted
FEWEST_EXAMPLES = 8  # of a class, here and elsewhere; a mean over fewer is far from normal
MOST_ALARMS = 16  # of one exchange, because each costs several passes over all clients
CUSTOM = 4.0  # directions in which honest clients differ by custom: the fewer, the more R varies
_ONE_CLASS = 4.0  # if no client has two classes; classes of images vary in about a quarter of the directions
_MOST_SHARE = 0.5  # of the freedom that the metric may use up: beyond that it is mostly noise


@dataclass(frozen=True)
class Deviation:
    """How far one client is from the others.

    Attributes:
        client: its number.
        ratio: R / (1 + b n), a ratio of squared distances: 1 for a usual client.
        chance: probability of such a ratio for a usual client.
        cosine: between its mean and the memory, of the class that is farthest away.
        classes: those that it was compared in, the farthest first.
    """

    client: int
    ratio: float
    chance: float
    cosine: float
    classes: tuple[int, ...]


@dataclass(frozen=True)
class _Distance:
    """R of one client, and the mean over its classes of n (N - n) / N."""

    client: int
    q: tuple[float, ...]  # of each class, the largest first
    examples: float
    least_variance: float  # of q, as a share of its expectation squared
    cosine: float
    classes: tuple[int, ...]

    @property
    def r(self) -> float:
        """R."""
        return statistics.fmean(self.q)

    @property
    def custom(self) -> float:
        """What b is if this client is a usual one."""
        return max(0.0, self.r - 1) / self.examples


class ClientMeans:
    """The class means of the clients of one exchange, in a file: the memory used does not grow with the
    clients.

    Attributes:
        is_cut: whether more clients raised an alarm than `deviations` returned.
    """

    def __init__(self, label_space: int, dim: int) -> None:
        """Raises OSError: there is no place for the file."""
        self._sum_KD = torch.zeros(label_space, dim, dtype=torch.float64)
        self._count_K = torch.zeros(label_space, dtype=torch.int64)
        self._within_DD = torch.zeros(dim, dim, dtype=torch.float64)
        self._cells = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._clients: list[int] = []
        self.is_cut = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the file. Raises OSError: the disk is full."""
        self._file.close()

    def add(self, sums: ClassSums, client: int) -> None:
        """Add one client's sums, with second moments. Raises OSError: the disk is full."""
        held_H = sums.count_K.nonzero().flatten()
        if not len(held_H):
            return
        self._sum_KD += sums.sum_KD
        self._count_K += sums.count_K
        self._within_DD += on_grid(sums.scatter_DD, MOMENT_GRID_BITS)  # so that any order gives the same
        self._cells += len(held_H)
        parts = (held_H, sums.count_K[held_H], sums.sum_KD[held_H])
        for part in parts:
            np.save(self._file, part.numpy(), allow_pickle=False)
        self._clients.append(client)

    def deviations(self, rate: float) -> list[Deviation]:
        """The clients that raise an alarm, in the order in which they were found; [] if nothing can be compared.

        With more than `MOST_ALARMS` the others are left out, and `is_cut` is set.

        Args:
            rate: the wanted probability of an alarm for a usual client. Measured, it is well below this if clients
                do not differ by custom, near it if they do in many directions, and above it if in a single one
                (docs/people.md).

        Raises:
            OSError: the disk is full.
        """
        metric = self._metric()
        if metric is None:
            return []
        aside: list[Deviation] = []
        while len(aside) <= MOST_ALARMS and len(self._clients) - len(aside) >= FEWEST_CLIENTS:
            out = {each.client for each in aside}
            distances = list(self._distances(metric, out))
            farthest = max(distances, key=lambda each: (each.r, each.client), default=None)
            if farthest is None:
                break
            others = [each for each in self._distances(metric, {*out, farthest.client}) if each.client not in out]
            others = [each for each in others if each.client != farthest.client]
            judged = _judged(farthest, others)
            if judged is None or judged.chance >= rate:
                break
            aside.append(judged)
        self.is_cut = len(aside) > MOST_ALARMS
        return aside[:MOST_ALARMS]

    def _metric(self) -> tuple[Tensor, float, float] | None:
        """(A, t, effective number of directions); None if the examples do not determine a metric."""
        freedom = int(self._count_K.sum()) - self._cells
        if len(self._clients) < FEWEST_CLIENTS or freedom < 1:
            return None
        scatter_DD = self._within_DD / freedom
        metric_DD = inverse_covariance(scatter_DD, freedom).double()
        product_DD = metric_DD @ scatter_DD
        trace = product_DD.trace().item()
        if not 0 < trace < _MOST_SHARE * freedom:
            return None
        directions = trace**2 / (product_DD @ product_DD).trace().item()
        return metric_DD, trace / (1 - trace / freedom), directions

    def _distances(self, metric: tuple[Tensor, float, float], aside: set[int]) -> Iterator[_Distance]:
        """Of each client in turn, from all clients but those set aside."""
        sum_KD, count_K = self._sum_KD.clone(), self._count_K.clone()
        for client, held_H, count_H, sum_HD in self._each():
            if client in aside:
                count_K[held_H] -= count_H
                sum_KD[held_H] -= sum_HD
        variance_K = (1 - (sum_KD / count_K.clamp(min=1)[:, None]).square().sum(dim=1)).clamp(min=1e-9)
        mean_variance = (variance_K * count_K).sum() / count_K.sum().clamp(min=1)
        for client, held_H, count_H, sum_HD in self._each():
            if client in aside:
                continue
            rest_H = count_K[held_H] - count_H
            fits_H = (count_H >= FEWEST_EXAMPLES) & (rest_H >= FEWEST_EXAMPLES)
            if fits_H.any():
                held_H, count_H, sum_HD = held_H[fits_H], count_H[fits_H], sum_HD[fits_H]
                share_H = variance_K[held_H] / mean_variance
                yield _distance(client, held_H, count_H, sum_HD, sum_KD[held_H], rest_H[fits_H], share_H, metric)

    def _each(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """(client, its classes [H], their counts [H], their sums [H, D]) of each client in turn."""
        self._file.seek(0)
        for client in self._clients:
            held_H, count_H, sum_HD = (torch.from_numpy(np.load(self._file, allow_pickle=False)) for _ in range(3))
            yield client, held_H, count_H, sum_HD
        self._file.seek(0, 2)


def _distance(
    client: int,
    held_H: Tensor,
    count_H: Tensor,
    sum_HD: Tensor,
    total_HD: Tensor,
    rest_H: Tensor,
    share_H: Tensor,
    metric: tuple[Tensor, float, float],
) -> _Distance:
    metric_DD, usual, directions = metric
    mean_HD = sum_HD / count_H[:, None]
    apart_HD = mean_HD - (total_HD - sum_HD) / rest_H[:, None]
    examples_H = count_H.double() * rest_H / (count_H + rest_H)
    q_H = examples_H * ((apart_HD @ metric_DD) * apart_HD).sum(dim=1) / (share_H * usual)
    order = torch.argsort(q_H, descending=True).tolist()
    memory_D, mean_D = total_HD[order[0]], mean_HD[order[0]]
    cosine = torch.nn.functional.cosine_similarity(mean_D, memory_D, dim=0).item()
    classes = tuple(int(held_H[place]) for place in order)
    q = tuple(q_H[order].clamp(min=0).tolist())  # rounding can make a distance of 0 negative
    return _Distance(client, q, examples_H.mean().item(), 2 / directions, cosine, classes)


def _judged(far: _Distance, others: list[_Distance]) -> Deviation | None:
    """The farthest client beside the others; None if there are too few of them."""
    if len(others) < FEWEST_CLIENTS - 1:
        return None
    custom = statistics.median(each.custom for each in others) * far.examples
    ratio, share = far.r / (1 + custom), custom / (1 + custom)
    of_class, of_client = _variance_of(others), share**2 * _variance_of_custom(others)
    of_r = of_class / len(far.q) + of_client
    of_expected = of_class / statistics.median(len(each.q) for each in others) + of_client
    # A median varies pi / 2 times as much as a mean.
    chance = f_tail(ratio, 2 / of_r, 2 * len(others) / (math.pi / 2 * of_expected))
    return Deviation(far.client, ratio, chance, far.cosine, far.classes)


def _variance_of_custom(usual: list[_Distance]) -> float:
    """Variance of what custom adds, between clients, as a share of its expectation squared: as seen, 2 / CUSTOM at
    least.
    """
    customs = [each.custom for each in usual]
    mean = statistics.fmean(customs)
    return max(2 / CUSTOM, statistics.variance(customs) / mean**2 if mean else 0.0)


def _variance_of(usual: list[_Distance]) -> float:
    """Variance of q between the classes of a client, as a share of its expectation squared."""
    least = max(each.least_variance for each in usual)
    apart = [each for each in usual if each.r > 0]  # clients with the same data are at no distance
    freedom = sum(len(each.q) - 1 for each in apart)
    if not freedom:
        return _ONE_CLASS * least
    return max(least, math.fsum((q / each.r - 1) ** 2 for each in apart for q in each.q) / freedom)


def f_tail(ratio: float, freedom: float, freedom_below: float) -> float:
    """Probability that an F variable is above `ratio`; Paulson's normal approximation (Ann. Math. Stat. 13,
    1942).
    """
    root, above, below = ratio ** (1 / 3), 2 / (9 * freedom), 2 / (9 * freedom_below)
    z = ((1 - below) * root - (1 - above)) / math.sqrt(below * root**2 + above)
    return 0.5 * math.erfc(z / math.sqrt(2))
