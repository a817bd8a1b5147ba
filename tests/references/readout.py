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
    vectors = {"vertex": etf, "memory": mean, "blend": (etf + F.normalize(mean)) / 2}
    nearest = mean.square().sum(1) / 2 if kind == "memory" else 0  # |h - v|^2, less what all classes share
    return scale * (cosines(feature, vectors[kind]) - nearest)
