"""FedAvg: McMahan et al., AISTATS 2017, arXiv 1602.05629."""

import torch.nn.functional as F
from references.plain import federate, start


def run(clients, rounds, run_seed):
    def loss(local, global_, name, x, y):
        return F.cross_entropy(local(x), y)

    return federate(start(run_seed), clients, rounds, run_seed, loss)
