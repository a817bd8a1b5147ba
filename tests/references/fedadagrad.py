"""FedAdagrad: Reddi et al., ICLR 2021, arXiv 2003.00295; server learning rate 0.1, no momentum."""

from references.adaptive import optimise


def run(clients, rounds, run_seed):
    return optimise(clients, rounds, run_seed, lambda v, d: v + d * d, lr=0.1, beta1=0)
