"""Federated averaging in plain PyTorch for all references; the loss is the method's own part. Imports no fednc."""

import copy
import hashlib

import torch
from torch import nn

WIDTH, CLASSES = 16, 10


def seed(*path):
    return int.from_bytes(hashlib.sha256("/".join(map(str, path)).encode()).digest()[:8], "big") >> 1


def start(run_seed, head=True):
    """A small CNN and a linear projection (its features), then a linear head if there is one."""
    torch.manual_seed(seed(run_seed, "model"))
    convs = [nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in ((1, 8), (8, 16), (16, 16))]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    layers = [convs[0], nn.MaxPool2d(2), nn.GroupNorm(8, 8), nn.ReLU(), convs[1], nn.MaxPool2d(2)]
    layers += [nn.GroupNorm(8, 16), nn.ReLU(), convs[2], nn.GroupNorm(8, 16), nn.ReLU()]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten()).to(memory_format=torch.channels_last)
    return nn.Sequential(
        nn.Sequential(body, nn.Linear(144, WIDTH)), *([nn.Linear(WIDTH, CLASSES)] if head else [])
    )


def federate(model, clients, rounds, run_seed, loss, on_gradients=None, on_trained=None, on_mean=lambda *_: None):
    """`loss(local, global, name, x, y)`; hooks get (local, global, name), `on_mean` (mean, global)."""
    for t in range(1, rounds + 1):
        trained = []
        for name, x, y in clients:
            local = copy.deepcopy(model)
            sgd = torch.optim.SGD(local.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-5)
            order = torch.Generator().manual_seed(seed(run_seed, "batches", t, name))
            for rows in torch.randperm(len(y), generator=order).split(8):
                sgd.zero_grad()
                loss(local, model, name, x[rows], y[rows]).backward()
                if on_gradients:
                    on_gradients(local, model, name)
                sgd.step()
            if on_trained:
                on_trained(local, model, name)
            trained.append(local)
        shares = [len(y) / sum(len(y) for _, _, y in clients) for _, _, y in clients]
        old, model = model, copy.deepcopy(model)
        for mean, *values in zip(model.parameters(), *(m.parameters() for m in trained), strict=True):
            mean.data = sum(s * v.detach().double() for s, v in zip(shares, values, strict=True)).float()
        on_mean(model, old)
    return model
