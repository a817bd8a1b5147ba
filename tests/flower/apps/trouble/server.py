"""Stock FedAvg that records the outcome of every round."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Noting(FedAvg):
    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=5)
        self.rounds: list[dict] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple:
        replies = list(replies)
        seen = {m.content["metrics"]["part"]: m.content["metrics"]["seen"] for m in replies if m.has_content()}
        errors = sorted(m.error.reason for m in replies if m.has_error())
        self.rounds.append({"seen": seen, "errors": errors})
        return super().aggregate_train(server_round, replies)


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = Noting()
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(3)]),
        num_rounds=int(context.run_config["num-rounds"]),
        timeout=float(context.run_config["timeout-s"]),
    )
    (Path(str(context.run_config["out"])) / "rounds.json").write_text(json.dumps(strategy.rounds))
