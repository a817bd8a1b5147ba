"""Mods around the ClientApp and around one of its functions: their order, what they add, what they skip."""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import message_size_mod
from flwr.serverapp import Grid, ServerApp

from common import App, both, finish


def noting(name: str):
    def mod(message: Message, context: Context, call_next: App) -> Message:
        message.content["log"]["names"] = [*message.content["log"]["names"], f"{name} in"]
        if name == "gate" and message.content["log"]["closed"]:
            return Message(RecordDict({"log": ConfigRecord({"names": ["closed"]})}), reply_to=message)
        reply = call_next(message, context)
        reply.content["log"]["names"] = [*reply.content["log"]["names"], f"{name} out"]
        return reply

    return mod


client = ClientApp(mods=[noting("outer"), noting("gate"), message_size_mod])
server = ServerApp()


@client.train(mods=[noting("inner")])
def train(message: Message, context: Context) -> Message:
    names = [*message.content["log"]["names"], "app"]
    return Message(RecordDict({"log": ConfigRecord({"names": names})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    answers = []
    for closed in (False, True):
        question = RecordDict({"log": ConfigRecord({"names": ["server"], "closed": closed})})
        replies = grid.send_and_receive([Message(question, node, "train") for node in both(grid)])
        answers.append(sorted(list(reply.content["log"]["names"]) for reply in replies))
    finish(context, answers)
