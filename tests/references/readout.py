"""The class memory, mean unit features of the global model, and how it classifies with and beside the frame."""

import torch
import torch.nn.functional as F
from references.frame import cosines
from references.plain import CLASSES


def memory(model, clients):
    x, y = (torch.cat(parts) for parts in list(zip(*clients, strict=True))[1:])
    feature = F.normalize(model(x), dim=1)
    return torch.stack([feature[y == c].mean(0) for c in range(CLASSES)]).detach()


def scores(feature, etf, mean, kind, scale):
    vertex = cosines(feature, etf)
    nearest = cosines(feature, mean) - mean.square().sum(1) / 2  # |h - v|^2, less what all share
    variance = 1 - mean.norm(dim=1).mean() ** 2
    both = (variance * vertex + nearest) / (1 + variance)
    return scale * {"vertex": vertex, "memory": nearest, "blend": both}[kind]
