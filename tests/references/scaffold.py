"""SCAFFOLD: Karimireddy et al., ICML 2020, arXiv 1910.06378; control variates are mean gradients of a round."""

import torch
import torch.nn.functional as F
from references.plain import federate, start


def run(clients, rounds, run_seed):
    model, examples = start(run_seed), sum(len(y) for _, _, y in clients)
    own = {name: [torch.zeros_like(p) for p in model.parameters()] for name, _, _ in clients}
    shares = {name: len(y) / examples for name, _, y in clients}
    seen, fresh = {name: [] for name in own}, {}

    def loss(local, global_, name, x, y):
        return F.cross_entropy(local(x), y)

    def on_gradients(local, global_, name):
        seen[name].append([p.grad.clone() for p in local.parameters()])
        for i, p in enumerate(local.parameters()):
            p.grad += sum(shares[other] * own[other][i] for other in own) - own[name][i]

    def on_trained(local, global_, name):
        fresh[name] = [torch.stack(steps).mean(0) for steps in zip(*seen[name], strict=True)]
        seen[name].clear()
        if len(fresh) == len(clients):
            own.update(fresh)
            fresh.clear()

    return federate(model, clients, rounds, run_seed, loss, on_gradients, on_trained)
