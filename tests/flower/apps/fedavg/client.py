"""Least squares on data drawn from the partition's number; counts its rounds in the context's state."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def data(context: Context) -> tuple[np.ndarray, np.ndarray]:
    part = int(context.node_config["partition-id"])
    draw = np.random.default_rng(part)
    x = draw.normal(size=(20 + 10 * part, 5)).astype(np.float32)
    return x, x @ np.arange(15, dtype=np.float32).reshape(5, 3) / 7 + 0.1 * part


@app.train()
def train(message: Message, context: Context) -> Message:
    weight, bias = message.content["arrays"].to_numpy_ndarrays()
    x, y = data(context)
    losses = []
    for _ in range(int(context.run_config["local.steps"])):
        error = x @ weight + bias - y
        losses.append(float((error**2).mean()))
        step = message.content["config"]["lr"] / len(x)
        weight = (weight - step * (x.T @ error)).astype(np.float32)
        bias = bias - step * error.sum(axis=0)
    before = context.state.metric_records.get("seen", MetricRecord({"rounds": 0}))
    context.state["seen"] = MetricRecord({"rounds": before["rounds"] + 1})
    metrics = {"num-examples": len(x), "losses": losses, "seen": context.state["seen"]["rounds"]}
    content = RecordDict({"arrays": ArrayRecord([weight, bias]), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    weight, bias = message.content["arrays"].to_numpy_ndarrays()
    x, y = data(context)
    loss = float(((x @ weight + bias - y) ** 2).mean())
    metrics = MetricRecord(
        {"num-examples": len(x), "loss": loss, "round": message.content["config"]["server-round"]}
    )
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
