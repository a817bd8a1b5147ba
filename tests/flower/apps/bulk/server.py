"""Asks for replies larger than the budget, larger than the limit, and for many that it never pulls."""

import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    [node] = grid.get_node_ids()  # only once, as many apps do

    def question(number: int, **asked: object) -> Message:
        return Message(RecordDict({"asked": ConfigRecord({"number": number, **asked})}), node, "query")

    def told(reply: Message) -> list:
        if reply.has_error():
            return [reply.error.code, reply.error.reason]
        size = sum(len(str(v)) if isinstance(v, int) else 0 for v in reply.content["seen"].values())
        return [*reply.content["seen"].values(), size > 0]

    def ask(*args: int, **asked: object) -> list:
        [reply] = grid.send_and_receive([question(*args, **asked)], timeout=60)
        return told(reply)

    answers = {
        "alone": ask(1, mib=4),
        "config": ask(2, mib=4, config=True),
        "down": ask(3, load=b"\x02" * (40 << 20)),
        "too large": ask(4, mib=20),
        "too large config": ask(5, mib=20, config=True),
        "after": ask(6, mib=1),
    }
    [reply] = grid.send_and_receive([Message(RecordDict(), node, "train")], timeout=60)
    answers["unsendable"] = told(reply)
    ids = []
    for number in range(6):
        ids += grid.push_messages([question(number, mib=2)])
    answers["later"] = ask(7, mib=1)
    time.sleep(0.5)
    pulled = sorted(grid.pull_messages(ids), key=lambda reply: ids.index(reply.metadata.reply_to_message_id))
    answers["pulled"] = [told(reply) for reply in pulled]
    (Path(str(context.run_config["out"])) / "answers.json").write_text(json.dumps(answers))
