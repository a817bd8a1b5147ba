"""FedAdam: Reddi et al., ICLR 2021, arXiv 2003.00295; server learning rate 0.01, beta2 = 0.99."""

from references.adaptive import optimise


def run(clients, rounds, run_seed):
    return optimise(clients, rounds, run_seed, lambda v, d: 0.99 * v + 0.01 * d * d, lr=0.01, beta1=0.9)
