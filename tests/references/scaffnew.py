"""Scaffnew: Mishchenko et al., ICML 2022, arXiv 2202.09357; SGD with momentum."""

import torch
import torch.nn.functional as F
from references.plain import federate, start

LR, MOMENTUM = 0.1, 0.9


def length_of(steps):
    """How far the optimiser walks along a gradient of 1."""
    return LR * sum((1 - MOMENTUM**i) / (1 - MOMENTUM) for i in range(1, steps + 1))


def run(clients, rounds, run_seed):
    own = {name: [torch.zeros_like(p) for p in start(run_seed).parameters()] for name, _, _ in clients}
    lengths, ends = {name: length_of(-(-len(y) // 8)) for name, _, y in clients}, {}

    def loss(local, global_, name, x, y):
        return F.cross_entropy(local(x), y)

    def on_gradients(local, global_, name):
        for p, shift in zip(local.parameters(), own[name], strict=True):
            p.grad -= shift

    def on_trained(local, global_, name):
        ends[name] = local

    def on_mean(mean, old):
        for name, end in ends.items():
            for shift, p, e in zip(own[name], mean.parameters(), end.parameters(), strict=True):
                shift += (p.detach() - e.detach()) / lengths[name]

    return federate(start(run_seed), clients, rounds, run_seed, loss, on_gradients, on_trained, on_mean)
