"""FedProx: Li et al., MLSys 2020, arXiv 1812.06127; mu = 0.01."""

import torch.nn.functional as F
from references.plain import federate, start


def run(clients, rounds, run_seed):
    def loss(local, global_, name, x, y):
        pairs = zip(local.parameters(), global_.parameters(), strict=True)
        return F.cross_entropy(local(x), y) + 0.01 / 2 * sum(((w - v.detach()) ** 2).sum() for w, v in pairs)

    return federate(start(run_seed), clients, rounds, run_seed, loss)
