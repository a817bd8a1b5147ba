"""Replies with only a ConfigRecord, with an empty one, and with no record at all."""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common import both, finish, part

client = ClientApp()
server = ServerApp()


@client.query()
def ask(message: Message, context: Context) -> Message:
    config = ConfigRecord({"part": part(context), "text": "Grüße\n\t\u2028", "raw": b"\x00\xff", "none": []})
    return Message(RecordDict({"only": config}), reply_to=message)


@client.query("empty")
def empty(message: Message, context: Context) -> Message:
    return Message(RecordDict({"": ConfigRecord({})}), reply_to=message)


@client.query("nothing")
def nothing(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    answers = {}
    for kind in ("query", "query.empty", "query.nothing"):
        question = RecordDict({"config": ConfigRecord({"k" * 300: "a key of 300 characters"})})
        replies = grid.send_and_receive([Message(question, node, kind) for node in both(grid)])
        answers[kind] = sorted(
            repr([(name, sorted(record.items())) for name, record in r.content.items()]) for r in replies
        )
    finish(context, answers)
