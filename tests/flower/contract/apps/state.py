"""Context.state of each kind across messages; what was set before an exception is kept."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common import both, finish, part

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    state = context.state
    count = state["count"]["n"] + 1 if "count" in state else 1
    state["count"] = MetricRecord({"n": count})
    state["last"] = ConfigRecord({"step": message.content["config"]["step"], "raw": b"\x01"})
    total = state["total"].to_numpy_ndarrays()[0] if "total" in state else np.zeros(3)
    state["total"] = ArrayRecord([total + part(context) + count])
    if message.content["config"]["step"] == 1:
        raise ArithmeticError("after the state was set")
    answer = MetricRecord({"n": count, "sum": [float(x) for x in state["total"].to_numpy_ndarrays()[0]]})
    return Message(RecordDict({"answer": answer}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    answers = []
    for step in range(3):
        question = RecordDict({"config": ConfigRecord({"step": step})})
        replies = grid.send_and_receive([Message(question, node, "train") for node in both(grid)])
        answers.append(
            sorted(
                str(r.error.code) if r.has_error() else repr(sorted(r.content["answer"].items())) for r in replies
            )
        )
    finish(context, answers)
