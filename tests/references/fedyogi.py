"""FedYogi: Reddi et al., ICLR 2021, arXiv 2003.00295; server learning rate 0.01, beta2 = 0.99."""

import torch
from references.adaptive import optimise


def run(clients, rounds, run_seed):
    def second(v, d):
        return torch.where(v > d * d, v - 0.01 * d * d, torch.where(v < d * d, v + 0.01 * d * d, v))

    return optimise(clients, rounds, run_seed, second, lr=0.01, beta1=0.9)
