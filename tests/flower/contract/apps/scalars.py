"""Scalars of subclasses of the types that Flower accepts, and integers beyond 63 bits, single and in lists."""

import enum

import numpy as np
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common import both, finish


class Colour(enum.IntEnum):
    RED = 3


class Name(str):
    pass


client = ClientApp()
server = ServerApp()


def content() -> RecordDict:
    metrics = MetricRecord(
        {
            "float64": np.float64(0.1),
            "enum": Colour.RED,
            "list": [np.float64(0.5), np.float64(-1)],
            "large": 2**63,
            "largest": 2**64 - 1,
            "larges": [1, 2**63],
            "least": -(2**63),
            "mixed": [1.0, np.float64(2)],
        }
    )
    config = ConfigRecord(
        {
            "str_": np.str_("text"),
            "name": Name("n"),
            "bytes_": np.bytes_(b"raw"),
            "yes": True,
            "flags": [True, False],
            "names": [np.str_("a"), np.str_("b")],
            "large": 2**63 + 5,
        }
    )
    return RecordDict({"metrics": metrics, "config": config})


def described(records: RecordDict) -> str:
    return repr(
        [(name, [(k, type(v).__name__, v) for k, v in record.items()]) for name, record in records.items()]
    )


@client.query()
def ask(message: Message, context: Context) -> Message:
    reply = content()
    reply["seen"] = ConfigRecord({"text": described(message.content)})
    return Message(reply, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    replies = grid.send_and_receive([Message(content(), node, "query") for node in both(grid)])
    finish(context, sorted(described(reply.content) for reply in replies))
