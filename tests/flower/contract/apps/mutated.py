"""One record sent repeatedly while its arrays change: each message carries the bytes of its moment."""

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common import both, finish

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    sums = [float(array.numpy().sum()) for array in message.content["arrays"].values()]
    return Message(RecordDict({"sums": MetricRecord({"sums": sums})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    content = RecordDict({"arrays": ArrayRecord([np.ones((100, 200)), np.zeros(3)])})
    answers = []
    for step in range(4):
        replies = grid.send_and_receive([Message(content, node, "train") for node in both(grid)])
        answers.append(sorted(list(reply.content["sums"]["sums"]) for reply in replies))
        array = content["arrays"]["0"]
        if step == 1:
            content["arrays"]["0"] = Array(np.full((100, 200), 7.0))
        else:
            array.data = Array(array.numpy() * 2).data
    finish(context, answers)
