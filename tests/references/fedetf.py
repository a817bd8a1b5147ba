"""FedETF: Li et al., ICCV 2023, arXiv 2303.10058: fixed frame, learned scale, balanced softmax."""

import torch
import torch.nn.functional as F
from references.frame import cosines, frame
from references.plain import CLASSES, federate, start
from torch import nn


def run(clients, rounds, run_seed):
    etf = frame(run_seed)
    model = start(run_seed, head=False)
    model.register_parameter("scale", nn.Parameter(torch.tensor(16.0)))
    counts = {name: y.bincount(minlength=CLASSES) for name, _, y in clients}

    def loss(local, global_, name, x, y):
        prior = (counts[name].clamp(min=1) / counts[name].sum()).log()
        return F.cross_entropy(local.scale * cosines(local(x), etf) + prior, y)

    model = federate(model, clients, rounds, run_seed, loss)
    return nn.ParameterList([*(p for n, p in model.named_parameters() if n != "scale"), model.scale])
