"""The frozen frame, drawn as the server draws it, and cosines of features to it."""

import torch
import torch.nn.functional as F
from references.plain import CLASSES, WIDTH, seed


def frame(run_seed):
    noise = torch.Generator().manual_seed(seed(seed(run_seed, "frame"), "frame"))
    q, r = torch.linalg.qr(torch.randn(WIDTH, CLASSES, dtype=torch.float64, generator=noise))
    centre = torch.eye(CLASSES, dtype=torch.float64) - 1 / CLASSES
    return ((CLASSES / (CLASSES - 1)) ** 0.5 * centre @ (q * r.diagonal().sign()).T).float()


def cosines(features, vectors):
    return F.normalize(features, dim=1) @ vectors.T
