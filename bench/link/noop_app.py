"""The no-op app of the link benchmarks: adds a constant of (client, round) to the model, and what must come of it.

One file for our link and for stock Flower, which loads it anew for every message: so nothing but numpy and flwr
is imported here. Must not know which engine runs it.
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
    """What this node holds: examples of the first of the run's two classes."""
    metrics = _metrics(context)
    metrics[HELD_OUT], metrics[CLASS_COUNTS] = 0, [examples(_index(context)), 0]
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """The model, every value of it moved by `delta`."""
    received = message.content
    shift = np.float32(delta(_index(context), _round(received)))
    model = received[MODEL]
    assert isinstance(model, ArrayRecord)
    moved = ArrayRecord()
    for key, array in model.items():
        moved[key] = _shifted(array, shift)
    return Message(RecordDict({MODEL: moved, METRICS: _metrics(context)}), reply_to=message)


def initial_model(params: int) -> dict[str, NDArray[np.float32]]:
    """Random float32 weights in a few tensors, `params` values in all; in two dimensions for the codecs."""
    flat = np.random.default_rng(0).standard_normal(params, dtype=np.float32)
    return {f"layer{i:02}": part[np.newaxis] for i, part in enumerate(np.array_split(flat, min(_TENSORS, params)))}


def delta(index: int, server_round: int) -> float:
    """What client `index` adds in a round: another value for each client (of up to 1009) and each round.

    All are of like size, so that nobody is an outlier.
    """
    return ((31 * index + 17 * server_round) % 1009 + 512) / 2048


def examples(index: int) -> int:
    """The weight of client `index`."""
    return 1 + index % 3


def mean_delta(clients: int, server_round: int) -> float:
    """By how much the weighted mean must move in a round."""
    moved = sum(examples(i) * delta(i, server_round) for i in range(clients))
    return moved / sum(map(examples, range(clients)))


def error(before: Mapping[str, NDArray[np.float32]], after: Mapping[str, NDArray[Any]], moved: float) -> float:
    """Largest deviation of `after` from the mean that a round must have, relative to the largest value."""
    worst = max(float(np.abs(after[key] - (value + np.float64(moved))).max()) for key, value in before.items())
    return worst / max(1.0, *(float(np.abs(value).max()) for value in before.values()))


def _shifted(array: Array, shift: np.float32) -> Array:
    """A stock Flower array (.npy bytes) with `shift` added in one pass.

    An engine that gave a view, as ours does, gets one back; stock Flower wants bytes, which is one copy more.
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
    """Our strategy and Flower's name the round differently."""
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
