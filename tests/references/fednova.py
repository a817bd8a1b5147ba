"""FedNova: Wang et al., NeurIPS 2020, arXiv 2007.07481; local SGD with momentum 0.9, batches of 8."""

import torch.nn.functional as F
from references.plain import federate, start


def worth(examples):
    """The weights of a client's gradients in its change, summed."""
    velocity, total = 0.0, 0.0
    for _ in range(-(-examples // 8)):
        velocity = 0.9 * velocity + 1
        total += velocity
    return total


def run(clients, rounds, run_seed):
    sizes = {name: len(y) for name, _, y in clients}
    mean_worth = sum(n * worth(n) for n in sizes.values()) / sum(sizes.values())

    def loss(local, global_, name, x, y):
        return F.cross_entropy(local(x), y)

    def on_trained(local, global_, name):
        for p, before in zip(local.parameters(), global_.parameters(), strict=True):
            change = (p.detach() - before.detach()) / worth(sizes[name])
            p.data = before.detach() + mean_worth * change

    return federate(start(run_seed), clients, rounds, run_seed, loss, on_trained=on_trained)
