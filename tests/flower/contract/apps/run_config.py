"""The run configuration and its overrides, as server and clients see them; the node's own configuration."""

import json

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common import both, finish

client = ClientApp()
server = ServerApp()


@client.query()
def ask(message: Message, context: Context) -> Message:
    config = {key: value for key, value in context.run_config.items() if key != "out"}
    text = json.dumps([config, dict(context.node_config)], sort_keys=True)
    return Message(RecordDict({"seen": ConfigRecord({"text": text})}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    replies = grid.send_and_receive([Message(RecordDict(), node, "query") for node in both(grid)])
    mine = {key: value for key, value in context.run_config.items() if key != "out"}
    finish(context, [mine, sorted(str(reply.content["seen"]["text"]) for reply in replies)])
