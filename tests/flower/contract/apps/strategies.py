"""Flower's own strategies, with evaluation on the server and metrics from both sides, two in a row."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvgM

from common import both, finish, part

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    arrays = [
        a + message.content["config"]["lr"] * (1 + part(context))
        for a in message.content["arrays"].to_numpy_ndarrays()
    ]
    metrics = MetricRecord({"num-examples": 10, "loss": np.float64(part(context) + 0.5)})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    total = float(sum(a.sum() for a in message.content["arrays"].to_numpy_ndarrays()))
    metrics = MetricRecord({"num-examples": 4, "total": total + part(context)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    both(grid)
    arrays, answers = ArrayRecord([np.zeros((3, 2), np.float32), np.ones(4, np.float32)]), []
    for strategy in (FedAvgM(server_learning_rate=1.0, server_momentum=0.9), FedAdam(eta=0.1)):
        result = strategy.start(
            grid=grid,
            initial_arrays=arrays,
            num_rounds=2,
            train_config=ConfigRecord({"lr": 0.25}),
            evaluate_fn=lambda _, a: MetricRecord({"sum": float(sum(x.sum() for x in a.to_numpy_ndarrays()))}),
        )
        arrays = result.arrays
        metrics = (
            result.train_metrics_clientapp,
            result.evaluate_metrics_clientapp,
            result.evaluate_metrics_serverapp,
        )
        answers.append([[a.tolist() for a in arrays.to_numpy_ndarrays()], *[repr(each) for each in metrics]])
    finish(context, answers)
