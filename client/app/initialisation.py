"""A client's answers while the federation initialises: its gradient, its share of a slope, scales of its own.

Called by the app. Each answer is independent of earlier ones. Must not know what the server does with them.

Legend: P scaled tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fednc.client.app.resident_run import Resident
from fednc.client.link.work_hooks import Hooks
from fednc.common import fault_injection, seeds
from fednc.common.errors import ProtocolError
from fednc.common.initialise import messages, nio
from fednc.common.initialise.messages import INIT, REPORT, SCALE, SLOPES, SUM, Answer, Order
from fednc.common.initialise.probe import Probe, batch_statistics
from fednc.common.initialise.windows import cut, windows
from fednc.common.learning.round_context import Guide
from fednc.common.tasks.api import Batch, TaskData
from fednc.common.wire import arrays
from fednc.common.wire.records import record_of


def _reply(**tensors: torch.Tensor) -> RecordDict:
    """A reply; one without tensors says that the client has too few examples."""
    content = RecordDict({INIT: arrays.to_record(tensors)})
    content[messages.METRICS] = MetricRecord()
    return content


class ClientInitialisation:
    """One client's part in the initialisation, with the model that it was sent."""

    def __init__(self, here: Resident, data: TaskData, guide: Guide, hooks: Hooks) -> None:
        # There are no earlier models to compare with yet, and one batch has one gradient.
        method = guide.method.model_copy(update={"contrast": 0.0, "distil": 0.0, "virtual_share": 0.0})
        self._here, self._data, self._hooks = here, data, hooks
        guide = replace(guide, method=method).to(here.device)
        self._probe = Probe(here.task, here.model, guide, here.task.shared_keys(here.model))

    def gradient(self, content: RecordDict) -> RecordDict:
        """Direction and norm of the gradient on an iteration's batch, at the scales sent. Raises ProtocolError."""
        batch = self._batch(Order.of(content).iteration)
        if batch is None:
            return _reply()
        self._set_scales(content)
        with batch_statistics(self._here.model):
            found = self._probe.gradient(batch, for_slope=False)
        return Answer(found.unit_N, float(found.norm), float(found.loss)).to_content()

    def slope(self, content: RecordDict) -> RecordDict:
        """This client's share of the slope of the objective. Raises ProtocolError."""
        order = Order.of(content)
        batch = self._batch(order.iteration)
        if batch is None:
            return _reply()
        self._set_scales(content)
        sum_N = _array(content, SUM).to(self._here.device)
        aim = nio.Aim(branch="objective", cosine=order.cosine, norm=order.norm, square=order.square)
        with batch_statistics(self._here.model):
            found = self._probe.gradient(batch)
            share = nio.share(found, sum_N - found.unit_N, order.units, aim)
            slope_P = self._probe.slope(share)
        return _reply(**{SLOPES: slope_P})

    def scales(self) -> RecordDict:
        """Scales that align the gradients of this client's sub-batches; all clients draw batches with one seed."""
        section = self._here.run.init
        if self._data.examples < section.sub_batches:
            return _reply()
        with batch_statistics(self._here.model):
            scale_P = nio.learn(self._probe, self._draws(), section).scale_P
        return _reply(**{SCALE: scale_P})

    def _set_scales(self, content: RecordDict) -> None:
        scale_P = _array(content, SCALE)
        if scale_P.shape != self._probe.layout.floor_P.shape:
            raise ProtocolError(f"{len(scale_P)} scales for {len(self._probe.layout.scaled)} tensors")
        self._probe.set(scale_P)

    def _batch(self, iteration: int) -> Batch | None:
        """Its own batch of an iteration; always the same one."""
        self._hooks.check()
        run = self._here.run
        size = run.evaluate.batch if iteration == REPORT else run.init.batch
        return self._draw(size, iteration, self._here.node)

    def _draws(self) -> Iterator[Sequence[Batch]]:
        section = self._here.run.init
        for iteration in range(section.iters):
            self._hooks.check()
            batch = self._draw(section.batch, iteration)
            size = self._here.task.batch_size_of(batch)
            cuts = windows(size, section.sub_batches, section.overlap)
            yield [cut(batch, rows) for rows in cuts]

    def _draw(self, size: int, *path: str | int) -> Batch | None:
        fault_injection.at("client.initialise")
        generator = seeds.generator(self._here.run.seed, "init", *path)
        return next(self._data.train_batches(size, generator), None)


def _array(content: RecordDict, key: str) -> torch.Tensor:
    tensors = arrays.from_record(record_of(content, INIT, ArrayRecord) or ArrayRecord())
    if key not in tensors:
        raise ProtocolError(f"the instruction has no array {key!r} in record {INIT!r}")
    return tensors[key]
