"""The class memory, mean unit features of the global model, and how it classifies with and beside the frame.

The metric is the inverse covariance around class means, shrunk as in equation 23 of Chen et al. 2010 (OAS) and no
smaller than rounding.
"""

import torch
import torch.nn.functional as F
from references.frame import cosines
from references.plain import CLASSES


def _features(model, clients):
    x, y = (torch.cat(parts) for parts in list(zip(*clients, strict=True))[1:])
    return F.normalize(model(x), dim=1).detach(), y


def memory(model, clients):
    feature, y = _features(model, clients)
    return torch.stack([feature[y == c].mean(0) for c in range(CLASSES)])


def metric(model, clients):
    feature, y = _features(model, clients)
    centred = (feature - memory(model, clients)[y]).double()
    cov, n, p = centred.T @ centred / len(y), len(y) - CLASSES, feature.shape[1]
    trace, trace_sq = cov.trace(), (cov @ cov).trace()
    share = ((1 - 2 / p) * trace_sq + trace**2) / ((n + 1 - 2 / p) * (trace_sq - trace**2 / p))
    return torch.linalg.inv((1 - share) * cov + (share * trace / p + 2**-30) * torch.eye(p))


def scores(feature, etf, mean, kind, scale, metric=None):
    if kind == "discriminant":
        h = F.normalize(feature, dim=1).double()
        gap = h[:, None] - mean.double()
        far = torch.einsum("bkd,de,bke->bk", gap, metric, gap)
        middle = h - mean.double().mean(0)
        return ((middle @ metric * middle).sum(1, keepdim=True) - far) / 2
    vertex = cosines(feature, etf)
    nearest = (
        cosines(feature, mean) - mean.square().sum(1) / 2
    )  # |h - v|^2 without the terms that all classes share
    variance = 1 - mean.norm(dim=1).mean() ** 2
    both = (variance * vertex + nearest) / (1 + variance)
    return scale * {"vertex": vertex, "memory": nearest, "blend": both}[kind]
