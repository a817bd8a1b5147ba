"""Runs training steps: as ordinary code on the CPU, replayed as a CUDA graph on a GPU.

The trainer makes one for each round. A small model's step is a thousand short kernels, which Python launches more
slowly than a GPU runs them; a graph launches them all at once. Capturing does not execute anything. So each step
is taken exactly once: the first one of a shape as ordinary code, the others as replays. Knows no method and no
task.
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
    """Runs `step` on batches, which are tuples of tensors.

    Attributes:
        step: trains on a batch and returns its losses. To be captured, it must run the same operations for every
            batch of one shape, never wait for the device and draw nothing on the CPU.
        capture: makes a step that replays `step` for batches of one shape; None: capture nothing.
    """

    step: Step
    capture: Capture | None

    def __post_init__(self) -> None:
        self._captured: dict[tuple[torch.Size, ...], Step | None] = {}

    def __call__(self, batch: Tensors) -> Losses:
        """Take one step. The losses are valid until the next step."""
        if self.capture is None:
            return self.step(batch)
        shape = tuple(tensor.shape for tensor in batch)
        if shape not in self._captured:  # the first step also allocates momentum and workspaces for later ones
            self._captured[shape] = None
            return self.step(batch)
        replay = self._captured[shape]
        if replay is None:
            replay = self._captured[shape] = self.capture(self.step, batch)
        return replay(batch)


def capture_for(device: torch.device) -> Capture | None:
    """The way to capture steps on `device`; None if there is none."""
    return _capture if device.type == "cuda" else None


def _capture(step: Step, batch: Tensors) -> Step:
    """`step` as a CUDA graph with its own input memory, into which every batch is copied."""
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
    """Run the block on the stream used for capturing, because a capture must not use the default stream."""
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:  # replays of a cancelled round may still run, and must not write into the next one
        torch.cuda.current_stream(device).wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all rounds, because the allocator reuses freed memory only within a stream."""
    return torch.cuda.Stream(device)


@cache
def _keeper(device: torch.device) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph that is never replayed. It keeps the memory pool alive that the graphs of all rounds share."""
    return _recorded(lambda: torch.zeros(1, device=device), None)


def _recorded(work: Callable[[], T], pool: Pool | None) -> tuple[torch.cuda.CUDAGraph, T]:
    """(`work` recorded as a graph, its result), on the current stream.

    Does not use `torch.cuda.graph`, which releases all cached memory each time and waits for the device.
    """
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool, "thread_local")
    try:
        result = work()
    except BaseException:
        with suppress(RuntimeError):  # only says that something failed before
            graph.capture_end()
        raise
    graph.capture_end()
    return graph, result
