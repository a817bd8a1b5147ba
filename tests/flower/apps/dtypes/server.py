"""An app without a strategy: arrays of many types and shapes, every kind of value, its own message ids."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()
TYPES = ["float16", "float32", "float64", "int8", "int16", "int64", "uint8", "uint32", "bool", "complex64"]


def question() -> RecordDict:
    arrays = {name: np.arange(24).reshape(2, 3, 4).astype(name) for name in TYPES}
    arrays |= {
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "fortran": np.ones((3, 2), order="F"),
    }
    values = {"text": "Grüße", "bytes": b"\x00\xff", "yes": True, "ints": [1, -2], "texts": ["a", ""], "none": []}
    numbers = MetricRecord({"big": 2**62, "tiny": 5e-324, "list": [0.1, float("inf")]})
    record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    return RecordDict({"arrays": record, "config": ConfigRecord(values), "numbers": numbers})


def described(reply: Message) -> dict:
    content = reply.content
    arrays = {
        k: [v.dtype, list(v.shape), hashlib.sha256(v.data).hexdigest()] for k, v in content["arrays"].items()
    }
    values = {name: repr(sorted(content[name].items())) for name in ("config", "numbers")}
    return {
        "arrays": arrays,
        **values,
        "types": sorted({type(v.data).__name__ for v in content["arrays"].values()}),
    }


@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(nodes := sorted(grid.get_node_ids())) < 2:
        time.sleep(0.2)
    answers = {}
    for kind in ("query", "query.twice"):
        ids = list(grid.push_messages([Message(question(), node, kind) for node in nodes]))
        assert len(set(ids)) == len(nodes)
        waiting = set(ids)
        while waiting:
            for reply in grid.pull_messages(list(waiting)):
                waiting.remove(reply.metadata.reply_to_message_id)
                answers[f"{kind} {reply.content['config']['part']}"] = described(reply)
            time.sleep(0.2)
    (Path(str(context.run_config["out"])) / "answers.json").write_text(json.dumps(answers, sort_keys=True))
