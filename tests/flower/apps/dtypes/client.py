"""Sends everything back; `twice` doubles the arrays."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def answer(message: Message, context: Context, arrays: ArrayRecord) -> Message:
    config = ConfigRecord({**message.content["config"], "part": context.node_config["partition-id"]})
    content = RecordDict({"arrays": arrays, "config": config, "numbers": message.content["numbers"]})
    return Message(content, reply_to=message)


@app.query()
def same(message: Message, context: Context) -> Message:
    return answer(message, context, message.content["arrays"])


@app.query("twice")
def twice(message: Message, context: Context) -> Message:
    arrays = {key: array.numpy() for key, array in message.content["arrays"].items()}
    doubled = {key: Array(np.asarray(value + value, dtype=value.dtype)) for key, value in arrays.items()}
    return answer(message, context, ArrayRecord(doubled))
