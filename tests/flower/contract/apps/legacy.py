"""The older API: `client_fn` with `NumPyClient`, `server_fn` with a strategy and configuration functions."""

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from common import finish


class Line(NumPyClient):
    def __init__(self, context: Context) -> None:
        self.part = int(context.node_config["partition-id"])

    def get_properties(self, config: dict) -> dict:
        return {"part": self.part}

    def fit(self, parameters: list, config: dict) -> tuple[list, int, dict]:
        step = [each + (self.part + 1) * config["rate"] for each in parameters]
        return step, 10 + self.part, {"accuracy": np.float64(0.5 + self.part / 4)}

    def evaluate(self, parameters: list, config: dict) -> tuple[float, int, dict]:
        return float(np.sum(parameters[0])), 10, {"part": self.part}


def client_fn(context: Context):
    return Line(context).to_client()


client = ClientApp(client_fn=client_fn)


def mean(metrics: list) -> dict:
    return {key: sum(each[key] for _, each in metrics) / len(metrics) for key in metrics[0][1]}


def server_fn(context: Context) -> ServerAppComponents:
    seen: list = []

    class Saving(FedAvg):
        def aggregate_fit(self, server_round: int, results: list, failures: list):
            parameters, metrics = super().aggregate_fit(server_round, results, failures)
            seen.append([[a.tolist() for a in parameters_to_ndarrays(parameters)], metrics, len(failures)])
            return parameters, metrics

        def aggregate_evaluate(self, server_round: int, results: list, failures: list):
            loss, metrics = super().aggregate_evaluate(server_round, results, failures)
            seen.append([loss, metrics])
            finish(context, seen)
            return loss, metrics

    strategy = Saving(
        min_available_clients=2,
        initial_parameters=ndarrays_to_parameters([np.zeros(4), np.ones((2, 2), np.float32)]),
        on_fit_config_fn=lambda server_round: {"rate": 1.0 / server_round},
        fit_metrics_aggregation_fn=mean,
        evaluate_metrics_aggregation_fn=mean,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))


server = ServerApp(server_fn=server_fn)
