"""The no-op app of the link benchmarks: adds a constant of (client, round) to the model, so the mean is known.

The same file runs on our link and on stock Flower, which loads it again for every message: import only numpy and
flwr here. Must not know which engine runs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

MODEL, METRICS, EXAMPLES = "model", "metrics", "num-examples"
HELD_OUT, CLASS_COUNTS = "held-out", "class-counts"
_TENSORS = 16

app = ClientApp()


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """The data of this node: examples of the first of two classes."""
    metrics = _metrics(context)
    metrics[HELD_OUT], metrics[CLASS_COUNTS] = 0, [examples(_index(context)), 0]
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """The model with `delta` added to every value."""
    received = message.content
    shift = np.float32(delta(_index(context), _round(received)))
    model = received[MODEL]
    assert isinstance(model, ArrayRecord)
    moved = ArrayRecord()
    for key, array in model.items():
        moved[key] = _shifted(array, shift)
    return Message(RecordDict({MODEL: moved, METRICS: _metrics(context)}), reply_to=message)


def initial_model(params: int) -> dict[str, NDArray[np.float32]]:
    """`params` random float32 weights in a few tensors, two-dimensional because of the codecs."""
    flat = np.random.default_rng(0).standard_normal(params, dtype=np.float32)
    return {f"layer{i:02}": part[np.newaxis] for i, part in enumerate(np.array_split(flat, min(_TENSORS, params)))}


def delta(index: int, server_round: int) -> float:
    """The value that client `index` adds in a round; it differs between clients (up to 1009) and rounds.

    All values have a similar size, so no client is an outlier.
    """
    return ((31 * index + 17 * server_round) % 1009 + 512) / 2048


def examples(index: int) -> int:
    """Number of examples of client `index`, its weight in the mean."""
    return 1 + index % 3


def mean_delta(clients: int, server_round: int) -> float:
    """How far the weighted mean must move in a round."""
    moved = sum(examples(i) * delta(i, server_round) for i in range(clients))
    return moved / sum(map(examples, range(clients)))


def error(before: Mapping[str, NDArray[np.float32]], after: Mapping[str, NDArray[Any]], moved: float) -> float:
    """Largest difference between `after` and the expected mean, relative to the largest value."""
    worst = max(float(np.abs(after[key] - (value + np.float64(moved))).max()) for key, value in before.items())
    return worst / max(1.0, *(float(np.abs(value).max()) for value in before.values()))


def _shifted(array: Array, shift: np.float32) -> Array:
    """A stock Flower array (.npy bytes) with `shift` added in one pass.

    An engine that passes a view, as ours does, gets a view back. Stock Flower needs bytes, which is one more copy.
    """
    data = memoryview(array.data)
    head = len(data) - 4 * math.prod(array.shape)
    moved = np.empty(len(data), np.uint8)
    moved[:head] = np.frombuffer(data[:head], np.uint8)
    np.add(np.frombuffer(data, np.float32, offset=head), shift, out=moved[head:].view(np.float32))
    made = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=bytes(data[:head]))
    made.data = moved.tobytes() if isinstance(array.data, bytes) else moved.data
    return made


def _index(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _round(received: RecordDict) -> int:
    """The round number, which our strategy and Flower's call by different names."""
    values = {
        key: value
        for record in received.values()
        if isinstance(record, ConfigRecord)
        for key, value in record.items()
    }
    found = values.get("round", values.get("server-round"))
    assert isinstance(found, int)
    return found


def _metrics(context: Context) -> MetricRecord:
    return MetricRecord({EXAMPLES: examples(_index(context)), "loss/loss": 0.0})
