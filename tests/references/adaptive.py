"""What fedadagrad, fedadam and fedyogi share: Reddi et al., ICLR 2021, arXiv 2003.00295, algorithm 2."""

import torch
import torch.nn.functional as F
from references.plain import federate, start


def optimise(clients, rounds, run_seed, second, lr, beta1):
    """`second(v, d)`: the second moment after a mean change d."""
    first = [torch.zeros_like(p) for p in start(run_seed).parameters()]
    v = [torch.full_like(p, 1e-6) for p in first]

    def loss(local, global_, name, x, y):
        return F.cross_entropy(local(x), y)

    def on_mean(mean, old):
        for i, (new, before) in enumerate(zip(mean.parameters(), old.parameters(), strict=True)):
            d = new.detach() - before.detach()
            first[i], v[i] = beta1 * first[i] + (1 - beta1) * d, second(v[i], d)
            new.data = before.detach() + lr * first[i] / (v[i].sqrt() + 0.001)

    return federate(start(run_seed), clients, rounds, run_seed, loss, on_mean=on_mean)
