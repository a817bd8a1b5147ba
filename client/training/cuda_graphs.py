"""One training step after another: as written on the CPU, replayed as a CUDA graph on a GPU.

Made by the trainer for one round. A small model's step is a thousand short kernels, which Python launches more
slowly than a GPU runs them; a graph launches all at once. Capturing runs nothing, so every step counts, and is
taken once: the first of a shape as written, the others as replays. Knows no method and no task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Losses = dict[str, Tensor]
Tensors = tuple[Tensor, ...]
Step = Callable[[Tensors], Losses]
Capture = Callable[[Step, Tensors], Step]
Pool = Any  # PyTorch's handle of a pool of memory
T = TypeVar("T")


@dataclass
class Steps:
    """Takes `step` on batches: tuples of tensors.

    Attributes:
        step: trains on a batch and returns its losses; does the same to every batch of one shape, never waits for
            the device and draws nothing on the CPU.
        capture: makes a step that replays `step` for batches of one shape; None: no step is captured.
    """

    step: Step
    capture: Capture | None

    def __post_init__(self) -> None:
        self._captured: dict[tuple[torch.Size, ...], Step | None] = {}

    def __call__(self, batch: Tensors) -> Losses:
        """One step. The losses are good until the next one."""
        if self.capture is None:
            return self.step(batch)
        shape = tuple(tensor.shape for tensor in batch)
        if shape not in self._captured:  # this first time also makes what later steps find: momentum, workspaces
            self._captured[shape] = None
            return self.step(batch)
        replay = self._captured[shape]
        if replay is None:
            replay = self._captured[shape] = self.capture(self.step, batch)
        return replay(batch)


def capture_for(device: torch.device) -> Capture | None:
    """How steps are captured on `device`."""
    return _capture if device.type == "cuda" else None


def _capture(step: Step, batch: Tensors) -> Step:
    """`step` as a CUDA graph that works on memory of its own, into which every batch is copied."""
    held = tuple(tensor.clone() for tensor in batch)
    graph, losses = _recorded(lambda: step(held), _keeper(held[0].device)[0].pool())

    def replay(batch: Tensors) -> Losses:
        for mine, given in zip(held, batch, strict=True):
            mine.copy_(given)
        graph.replay()
        return losses

    return replay


@contextmanager
def beside_default_stream(device: torch.device) -> Iterator[None]:
    """Work of the block goes to the stream that captures: what it captures may not touch the default one."""
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:  # a cancelled round too leaves replays behind, which must not write into the next one
        torch.cuda.current_stream(device).wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all rounds: the allocator keeps what each stream has freed for that stream."""
    return torch.cuda.Stream(device)


@cache
def _keeper(device: torch.device) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph that is never replayed. While it lives, so does the memory that the graphs of all rounds share."""
    return _recorded(lambda: torch.zeros(1, device=device), None)


def _recorded(work: Callable[[], T], pool: Pool | None) -> tuple[torch.cuda.CUDAGraph, T]:
    """What `work` launches, as a graph, and what it returns. On the stream that is current.

    Not `torch.cuda.graph`, which gives back all cached memory each time and waits for the device.
    """
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool, "thread_local")
    try:
        result = work()
    except BaseException:
        with suppress(RuntimeError):  # says only that something else had failed
            graph.capture_end()
        raise
    graph.capture_end()
    return graph, result
