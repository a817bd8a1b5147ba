"""Several records of each kind in a reply, and many more records, keys and list values than usual."""

import hashlib

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common import both, finish, part

client = ClientApp()
server = ServerApp()


def content(seed: int) -> RecordDict:
    draw = np.random.default_rng(seed)
    records: dict = {f"r{index:03d}": MetricRecord({"x": float(draw.normal())}) for index in range(100)}
    records["keys"] = ConfigRecord({f"key {index}": index for index in range(5000)})
    records["list"] = MetricRecord({"long": [float(x) for x in draw.normal(size=300_000)]})
    for name in ("first", "second"):
        arrays = {f"{name}/{index}": Array(draw.normal(size=(index, 3))) for index in range(4)}
        records[name] = ArrayRecord(arrays)
    return RecordDict(records)


def digest(records: RecordDict) -> str:
    found = hashlib.sha256()
    for name, record in records.items():
        values = [(k, v.data if isinstance(v, Array) else v) for k, v in record.items()]
        found.update(repr((name, type(record).__name__, values)).encode())
    return found.hexdigest()


@client.query()
def ask(message: Message, context: Context) -> Message:
    reply = content(part(context))
    reply["seen"] = ConfigRecord({"digest": digest(message.content)})
    return Message(reply, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    replies = grid.send_and_receive([Message(content(7), node, "query") for node in both(grid)])
    answers = [(str(reply.content["seen"]["digest"]), digest(reply.content)) for reply in replies]
    assert {seen for seen, _ in answers} == {digest(content(7))}
    finish(context, sorted(answers))
