"""Custom message types and groups; ids; an unknown node; errors that an app returns, raises, or causes."""

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from common import both, finish, part

client = ClientApp()
server = ServerApp()


@client.query("greet")
def greet(message: Message, context: Context) -> Message:
    meta = message.metadata
    seen = {"type": meta.message_type, "group": meta.group_id, "part": part(context)}
    return Message(RecordDict({"seen": ConfigRecord(seen)}), reply_to=message)


@client.train("refuse")
def refuse(message: Message, context: Context) -> Message:
    return Message(Error(code=1234, reason="not today: why\nat all"), reply_to=message)


@client.evaluate("fail")
def fail(message: Message, context: Context) -> Message:
    raise KeyError("gone")


@client.evaluate("twice")
def twice(message: Message, context: Context) -> Message:
    return Message(RecordDict({"n": MetricRecord({"n": message.content["n"]["n"] * 2})}), reply_to=message)


def answer(reply: Message) -> str:
    if not reply.has_error():
        return repr([(name, sorted(record.items())) for name, record in reply.content.items()])
    return f"error {reply.error.code}" + (f" {reply.error.reason}" if reply.error.code == 1234 else "")


@server.main()
def main(grid: Grid, context: Context) -> None:
    nodes, answers = both(grid), {}
    for kind in ("query.greet", "train.refuse", "evaluate.fail", "evaluate.twice", "query.nobody_knows"):
        question = RecordDict({"n": MetricRecord({"n": 21})})
        messages = [Message(question, node, kind, group_id=f"stage {kind}") for node in nodes]
        replies = list(grid.send_and_receive(messages))
        assert all(message.metadata.message_id for message in messages), "a message has no id"
        assert {r.metadata.reply_to_message_id for r in replies} == {m.metadata.message_id for m in messages}
        assert {r.metadata.src_node_id for r in replies} == set(nodes)
        assert {r.metadata.group_id for r in replies} == {f"stage {kind}"}
        assert all(reply.metadata.message_id for reply in replies if reply.has_content())
        answers[kind] = sorted(map(answer, replies))
    assert sorted(node.node_id for node in grid.get_nodes()) == nodes
    finish(context, answers)
