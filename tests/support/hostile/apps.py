"""Admitted clients that lie: the shipped app, with replies changed before they leave.

Every reply is well formed, and most keep every announced limit. Only their content is hostile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from torch import Tensor

from fednc.client.app.flower_app import app as honest_app
from fednc.common.wire import arrays
from fednc.common.wire.messages import CLASS_COUNTS, EXAMPLES, HELD_OUT, METRICS, MODEL, STATS, SUMS

Tensors = dict[str, Tensor]
Lie = Callable[[Message, Message], None]  # changes in place the reply (second) to an instruction (first)


def app_with(lies: Mapping[str, Lie]) -> Callable[[Message, Context], Message]:
    """An app in which the named clients lie. A grid needs one app for all clients."""

    def app(message: Message, context: Context) -> Message:
        reply = honest_app(message, context)
        lie = lies.get(str(context.node_config["name"]))
        if lie and not reply.has_error():
            lie(message, reply)
        return reply

    return app


def all_of(*lies: Lie) -> Lie:
    """One lie after the other."""

    def lie(message: Message, reply: Message) -> None:
        for each in lies:
            each(message, reply)

    return lie


def changed(message: Message, reply: Message, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Apply `change` to the global and the trained value of each floating-point tensor of the update."""
    if MODEL not in reply.content or MODEL not in message.content:
        return
    origin = arrays.from_record(message.content[MODEL])
    trained = arrays.from_record(reply.content[MODEL])
    reply.content[MODEL] = arrays.to_record(
        {
            key: change(origin[key], value).to(value.dtype) if value.is_floating_point() else value
            for key, value in trained.items()
        }
    )


def scaled(factor: float) -> Lie:
    """The update times `factor`; -1 is the sign flip."""
    return lambda message, reply: changed(message, reply, lambda w, v: w + factor * (v - w))


def constant(value: float) -> Lie:
    """All weights are one number, which is within the bounds of the aggregation."""
    return lambda message, reply: changed(message, reply, lambda w, v: torch.full_like(v, value))


def noise(factor: float) -> Lie:
    """A random change, `factor` times as large as the honest one."""

    def change(origin: Tensor, trained: Tensor) -> Tensor:
        step = torch.randn_like(trained)
        return origin + step * factor * (trained - origin).norm() / step.norm().clamp(min=1e-9)

    return lambda message, reply: changed(message, reply, change)


def claims(examples: int) -> Lie:
    """Claims that many examples in every reply with a number, spread over all classes."""

    def lie(_message: Message, reply: Message) -> None:
        metrics = reply.content.get(METRICS)
        if not isinstance(metrics, MetricRecord):
            return
        metrics[EXAMPLES] = examples
        if HELD_OUT in metrics:
            metrics[HELD_OUT] = examples
        if CLASS_COUNTS in metrics:
            classes = len(metrics[CLASS_COUNTS])  # type: ignore[arg-type]
            metrics[CLASS_COUNTS] = [examples // classes] * classes

    return lie


def replies_with(examples: int) -> Lie:
    """Announces its true number of examples, and later claims that many."""

    def lie(_message: Message, reply: Message) -> None:
        metrics = reply.content.get(METRICS)
        if isinstance(metrics, MetricRecord) and HELD_OUT not in metrics:
            metrics[EXAMPLES] = examples

    return lie


def record(name: str, change: Callable[[Tensors], None]) -> Lie:
    """Apply `change` to the tensors of one record, in place."""

    def lie(_message: Message, reply: Message) -> None:
        found = reply.content.get(name)
        if isinstance(found, ArrayRecord) and len(found):
            tensors = {key: value.clone() for key, value in arrays.from_record(found).items()}
            change(tensors)
            reply.content[name] = arrays.to_record(tensors)

    return lie


def wrong_memory(count: int | None) -> Lie:
    """Each class's sum is that of the next class, over `count` examples each or the true number."""

    def change(sums: Tensors) -> None:
        count_K = sums["count_K"] if count is None else torch.full_like(sums["count_K"], count)
        mean_KD = sums["sum_KD"] / sums["count_K"].clamp(min=1).unsqueeze(1)
        sums["sum_KD"] = mean_KD.roll(1, dims=0) * count_K.unsqueeze(1)
        sums["count_K"] = count_K

    return record(SUMS, change)


def wrong_statistics(examples: int) -> Lie:
    """All of that many examples are correct, or a class has a negative number of correct ones."""

    def change(stats: Tensors) -> None:
        stats["examples"].fill_(examples)
        stats["correct"].fill_(examples)
        stats["correct_K"][0] = -10 * examples

    return record(STATS, change)


def perfect(examples: int) -> Lie:
    """Consistent statistics: that many examples, all of one class, all correct."""

    def change(stats: Tensors) -> None:
        for key in ("examples", "correct"):
            stats[key].fill_(examples)
        for key in ("count_K", "correct_K"):
            stats[key].zero_()
            stats[key][0] = examples
        stats["loss_sum"].zero_()

    return record(STATS, change)
