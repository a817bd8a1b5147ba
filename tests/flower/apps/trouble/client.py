"""In round 2 every node but the first fails in its own way."""

import os
import sys
import time

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def misbehave(how: str) -> None:
    if how == "raise":
        raise ZeroDivisionError("of no use")
    if how == "exit":
        os._exit(3)
    if how == "leave":
        sys.exit("had enough")
    if how == "sleep":
        time.sleep(3600)


@app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    if config["server-round"] == 2:
        misbehave(str(config.get("how", context.node_config.get("how"))))
    before = context.state.metric_records.get("seen", MetricRecord({"rounds": 0}))
    context.state["seen"] = MetricRecord({"rounds": before["rounds"] + 1})
    seen = context.state["seen"]["rounds"]
    metrics = MetricRecord({"num-examples": 1, "part": context.node_config["partition-id"], "seen": seen})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)
