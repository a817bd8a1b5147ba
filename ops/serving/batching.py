"""Joins concurrent requests into batches: what waits while one batch is computed makes the next one.

Runs on the event loop and computes in a thread of its own. The queue is bounded. Knows no protocol.

Legend: B batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fednc.ops.serving.refusals import Problem, RequestRefusal
from fednc.ops.serving.tensors import Array

Outputs = Mapping[str, Array]  # each [B, ...]
Run = Callable[[Tensor], Outputs]


@dataclass(frozen=True)
class BatchLimits:
    """How requests are batched.

    Attributes:
        most: examples in one batch; a larger request is computed in pieces of this size.
        delay_s: how long an idle model waits for a batch to fill up.
        queue: examples that may wait; a request beyond that is refused as busy.
    """

    most: int = 64
    delay_s: float = 0.0
    queue: int = 2048


@dataclass(frozen=True)
class _Waiting:
    inputs: Tensor
    answer: asyncio.Future[Outputs]

    @property
    def kind(self) -> tuple[torch.Size, torch.dtype]:
        """Only inputs of one kind fit into one batch."""
        return self.inputs.shape[1:], self.inputs.dtype


class Batcher:
    """The queue of one model and its thread."""

    def __init__(
        self, run: Run, limits: BatchLimits, note: Callable[[int], None] = lambda _examples: None
    ) -> None:
        """`note` hears the size of every batch, on the event loop."""
        self._run, self._limits, self._note = run, limits, note
        self._waiting: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fednc-model")
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self.queued = 0  # examples that wait

    async def __call__(self, inputs: Tensor) -> Outputs:
        """The outputs for `inputs` [B, ...], in the same order. Raises RequestRefusal."""
        size = len(inputs)
        if self.queued and self.queued + size > self._limits.queue:
            raise RequestRefusal(f"busy: {self.queued} examples wait already; try again in a moment", Problem.BUSY)
        waiting = _Waiting(inputs, self._loop.create_future())
        self._waiting.append(waiting)
        self.queued += size
        self._wake()
        return await waiting.answer

    def close(self) -> None:
        """End the thread. Nothing may wait any more."""
        self._thread.shutdown(wait=False)

    def _wake(self) -> None:
        """Start a batch if the model is idle, once enough waits or the first has waited long enough."""
        if self._busy or not self._waiting:
            return
        if self._limits.delay_s and self.queued < self._limits.most:
            if self._timer is None:
                self._timer = self._loop.call_later(self._limits.delay_s, self._start)
            return
        self._start()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self._take()
        if not batch or self._busy:
            return
        self._busy = True
        self._note(sum(len(each.inputs) for each in batch))
        done = self._loop.run_in_executor(self._thread, self._compute, [each.inputs for each in batch])
        done.add_done_callback(lambda found: self._finish(batch, found))

    def _take(self) -> list[_Waiting]:
        """The next batch: the longest run of requests of one kind that fits. Callers who have left are dropped."""
        batch: list[_Waiting] = []
        size = 0
        while self._waiting:
            head = self._waiting[0]
            if batch and (head.kind != batch[0].kind or size + len(head.inputs) > self._limits.most):
                break
            self._waiting.popleft()
            self.queued -= len(head.inputs)
            if not head.answer.done():
                batch.append(head)
                size += len(head.inputs)
        return batch

    def _compute(self, inputs: list[Tensor]) -> list[Outputs | Exception]:
        """One result per request, in the thread. If the batch fails, each request is computed alone."""
        try:
            found = self._in_pieces(inputs[0] if len(inputs) == 1 else torch.cat(inputs))
        except Exception as e:
            if len(inputs) == 1:
                return [e]
            return [result for each in inputs for result in self._compute([each])]
        ends = np.cumsum([len(each) for each in inputs]).tolist()
        starts = [0, *ends[:-1]]
        return [
            {name: values[start:end] for name, values in found.items()}
            for start, end in zip(starts, ends, strict=True)
        ]

    def _in_pieces(self, inputs: Tensor) -> Outputs:
        if len(inputs) <= self._limits.most:
            return self._run(inputs)
        pieces = [self._run(piece) for piece in inputs.split(self._limits.most)]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _finish(self, batch: list[_Waiting], done: asyncio.Future[list[Outputs | Exception]]) -> None:
        self._busy = False
        results = done.result() if done.exception() is None else [done.exception()] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(result, BaseException):
                waiting.answer.set_exception(result)
            elif result is not None:
                waiting.answer.set_result(result)
        if self._waiting:
            self._start()
