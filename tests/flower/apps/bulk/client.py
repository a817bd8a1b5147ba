"""Answers with as many megabytes as the server asks for, in arrays or in a ConfigRecord."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def answer(message: Message, context: Context) -> Message:
    asked = message.content["asked"]
    content = RecordDict({"seen": ConfigRecord({"number": asked["number"], "bytes": len(asked.get("load", b""))})})
    size = int(asked.get("mib", 0)) << 20
    if asked.get("config"):
        content["load"] = ConfigRecord({"load": b"\x01" * size})
    else:
        content["load"] = ArrayRecord([np.ones(size, np.uint8)])
    return Message(content, reply_to=message)


@app.train()
def unsendable(message: Message, context: Context) -> Message:
    return Message(RecordDict({"large": ConfigRecord({"number": 2**64})}), reply_to=message)
