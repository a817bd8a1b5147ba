"""FedDyn: Acar et al., ICLR 2021, arXiv 2111.04263; alpha = 0.01, clients weighted by their examples."""

import torch
import torch.nn.functional as F
from references.plain import federate, start

ALPHA = 0.01


def run(clients, rounds, run_seed):
    own = {name: [torch.zeros_like(p) for p in start(run_seed).parameters()] for name, _, _ in clients}
    h = [torch.zeros_like(p) for p in start(run_seed).parameters()]

    def loss(local, global_, name, x, y):
        total = F.cross_entropy(local(x), y)
        for p, before, g in zip(local.parameters(), global_.parameters(), own[name], strict=True):
            total = total - (g * p).sum() + ALPHA / 2 * (p - before.detach()).square().sum()
        return total

    def on_trained(local, global_, name):
        for i, (p, before) in enumerate(zip(local.parameters(), global_.parameters(), strict=True)):
            own[name][i] = own[name][i] - ALPHA * (p.detach() - before.detach())

    def on_mean(mean, old):
        for i, (new, before) in enumerate(zip(mean.parameters(), old.parameters(), strict=True)):
            h[i] = h[i] - ALPHA * (new.detach() - before.detach())
            new.data = new.detach() - h[i] / ALPHA

    return federate(start(run_seed), clients, rounds, run_seed, loss, on_trained=on_trained, on_mean=on_mean)
