"""FedAvgM: Hsu, Qi, Brown, 2019, arXiv 1909.06335; beta = 0.9, server learning rate 1."""

import torch
import torch.nn.functional as F
from references.plain import federate, start


def run(clients, rounds, run_seed):
    velocity = [torch.zeros_like(p) for p in start(run_seed).parameters()]

    def loss(local, global_, name, x, y):
        return F.cross_entropy(local(x), y)

    def on_mean(mean, old):
        for i, (new, before) in enumerate(zip(mean.parameters(), old.parameters(), strict=True)):
            velocity[i] = 0.9 * velocity[i] - (before.detach() - new.detach())
            new.data = before.detach() + velocity[i]

    return federate(start(run_seed), clients, rounds, run_seed, loss, on_mean=on_mean)
