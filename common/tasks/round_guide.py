"""Builds the `Guide` of a round: its training targets and what its read-out uses. The only place that does.

Called by the server for its own evaluation and fit, by each client with the frame and memory that it received, and
by an exported model. Must not know which task it is for.

Legend: K label space, D feature width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fednc.common import seeds
from fednc.common.config.tables import MethodSection
from fednc.common.learning.class_memory import OPTIONAL, ClassMemory
from fednc.common.learning.round_context import Guide, memory_ramp, with_faded_prior
from fednc.common.tasks.api import Task


def guide_at(
    task: Task,
    etf_KD: Tensor,
    memory: ClassMemory,
    server_round: int,
    *,
    count_K: Tensor | None = None,
    method: MethodSection | None = None,
) -> Guide:
    """The guide of a round.

    Args:
        task: the run's task.
        etf_KD: the frozen frame.
        memory: the class memory that the method gets in this round.
        server_round: counts from 1; 0 is before the first round.
        count_K: examples of each class that this client trains on; None if there is no training.
        method: replaces the run's own method; a comparison reads out one model in several ways.
    """
    method = with_faded_prior(method or task.run.method, server_round, task.run.rounds.total)
    guide = _guide(method, etf_KD, memory, memory_ramp(method, server_round), count_K)
    return task.within_stage(guide, server_round)


def first_guide(task: Task, count_K: Tensor) -> Guide:
    """The guide of round 1 with the run's own frame and no memory yet, for work without a server."""
    frame = task.frame(seeds.derive(task.run.seed, "frame"))
    return guide_at(task, frame.etf_KD, ClassMemory.empty(frame.vertices, task.memory_dim), 1, count_K=count_K)


def guide_of_model(
    task: Task, etf_KD: Tensor, memory: ClassMemory, classes: int, temperature: float = 1.0
) -> Guide:
    """The guide for the read-out of a trained model with `classes` classes."""
    guide = _guide(task.run.method, etf_KD, memory, classes=classes if task.takes_sessions else None)
    return replace(guide, temperature=temperature)


def _guide(
    method: MethodSection,
    etf_KD: Tensor,
    memory: ClassMemory,
    ramp: float = 1.0,
    count_K: Tensor | None = None,
    classes: int | None = None,
) -> Guide:
    none_K = torch.zeros(len(etf_KD), dtype=torch.int64, device=etf_KD.device)
    return Guide(
        method=method,
        etf_KD=etf_KD,
        mean_KD=memory.mean_KD,
        seen_K=memory.seen_K,
        metric_DD=memory.metric_DD,
        ridge_KD=memory.ridge_KD,
        ridge_K=memory.ridge_K,
        count_K=none_K if count_K is None else count_K,
        memory_ramp=ramp,
        classes=classes,
    )


def memory_of(guide: Guide) -> ClassMemory:
    """The class memory that `guide` was made from, on the CPU."""
    parts = {name: getattr(guide, name) for name in OPTIONAL}
    return ClassMemory(
        mean_KD=guide.mean_KD.cpu(),
        seen_K=guide.seen_K.cpu(),
        **{name: value.cpu() for name, value in parts.items() if value is not None},
    )
