"""Stock FedAvg over a linear model in numpy."""

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    start = ArrayRecord([np.zeros((5, 3), np.float32), np.zeros(3, np.float64)])
    result = FedAvg(min_available_nodes=2).start(
        grid=grid,
        initial_arrays=start,
        num_rounds=int(context.run_config["num-rounds"]),
        train_config=ConfigRecord({"lr": float(context.run_config["local.lr"])}),
    )
    out = Path(str(context.run_config["out"]))
    np.savez(out / "model.npz", *result.arrays.to_numpy_ndarrays())
    metrics = {
        "train": {number: dict(each) for number, each in result.train_metrics_clientapp.items()},
        "evaluate": {number: dict(each) for number, each in result.evaluate_metrics_clientapp.items()},
    }
    (out / "metrics.json").write_text(json.dumps(metrics))
