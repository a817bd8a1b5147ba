"""An app from before `Message`: a strategy from a function, run by Flower's compatibility layer."""

from pathlib import Path

import numpy as np
from flwr.common import Context, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg


def server_fn(context: Context) -> ServerAppComponents:
    class Saving(FedAvg):
        def aggregate_fit(
            self, server_round: int, results: list, failures: list
        ) -> tuple[Parameters | None, dict]:
            parameters, metrics = super().aggregate_fit(server_round, results, failures)
            np.savez(Path(str(context.run_config["out"])) / "model.npz", *parameters_to_ndarrays(parameters))
            return parameters, metrics

    strategy = Saving(min_available_clients=2, initial_parameters=ndarrays_to_parameters([np.zeros(4)]))
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))


app = ServerApp(server_fn=server_fn)
