"""A NumPyClient that adds its partition's number plus one."""

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context


class Adding(NumPyClient):
    def __init__(self, part: int) -> None:
        self.part = part

    def fit(self, parameters: list, config: dict) -> tuple[list, int, dict]:
        return [parameters[0] + self.part + 1], 10, {}

    def evaluate(self, parameters: list, config: dict) -> tuple[float, int, dict]:
        return float(np.sum(parameters[0])), 10, {"part": self.part}


def client_fn(context: Context):
    return Adding(int(context.node_config["partition-id"])).to_client()


app = ClientApp(client_fn=client_fn)
