"""A workflow in stages, like secure aggregation: 1 M masked parameters in lists and bytes, both ways."""

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common import both, finish, part

SIZE = 1_000_000
client = ClientApp()
server = ServerApp()


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 1 << 20, SIZE)


@client.train("setup")
def setup(message: Message, context: Context) -> Message:
    context.state["seed"] = ConfigRecord({"seed": int(message.content["stage"]["seed"]) + part(context)})
    return Message(RecordDict({"stage": ConfigRecord({"part": part(context)})}), reply_to=message)


@client.train("collect")
def collect(message: Message, context: Context) -> Message:
    masked = vector(part(context)) + vector(int(context.state["seed"]["seed"]))
    stage = ConfigRecord({"masked": masked.tolist(), "raw": masked.tobytes(), "part": part(context)})
    return Message(RecordDict({"stage": stage}), reply_to=message)


@client.train("unmask")
def unmask(message: Message, context: Context) -> Message:
    total = np.frombuffer(message.content["stage"]["total"], np.int64)
    assert total.tolist() == message.content["stage"]["list"]
    rest = total - vector(int(context.state["seed"]["seed"]))
    stage = ConfigRecord({"sum": int(rest.sum()), "head": rest[:5].tolist(), "part": part(context)})
    return Message(RecordDict({"stage": stage}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    def stage(kind: str, **values: object) -> list[ConfigRecord]:
        content = RecordDict({"stage": ConfigRecord(values)})
        replies = grid.send_and_receive([Message(content, node, kind) for node in both(grid)])
        assert all(reply.has_content() for reply in replies), [r.error for r in replies if r.has_error()]
        return sorted((reply.content["stage"] for reply in replies), key=lambda record: record["part"])

    stage("train.setup", seed=100)
    masked = stage("train.collect")
    assert [np.frombuffer(each["raw"], np.int64).tolist() == each["masked"] for each in masked] == [True, True]
    total = sum(np.array(each["masked"]) for each in masked)
    rest = stage("train.unmask", total=total.tobytes(), list=total.tolist())
    finish(context, [int(total.sum()), [dict(each) for each in rest]])
