"""A client's part in the probe: it trains every candidate for a few steps and sums up their losses.

Called by the app before round 1. Nothing that is trained here is kept or sent; only sums of losses are.

Legend: C candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fednc.client.app.resident_run import Resident
from fednc.client.app.withheld_sums import fitting_batch
from fednc.client.link.work_hooks import Hooks, LocalProgress
from fednc.client.training import trainer
from fednc.common import seeds
from fednc.common.config.tables import TrainSection
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.round_context import Guide
from fednc.common.tasks import discovery, probe
from fednc.common.tasks.api import Task, TaskData
from fednc.common.tasks.evaluation import evaluation_batches
from fednc.common.tasks.metrics import Stats
from fednc.common.tasks.probe import Candidate
from fednc.common.tasks.round_guide import guide_at

_FEWEST = 2  # examples to train on

log = logging.getLogger("fednc.client")


def losses(here: Resident, data: TaskData, data_sums: Mapping[str, Tensor], hooks: Hooks) -> Stats:
    """The sums of all candidates; {} if this client has too few examples, and the log says so.

    Args:
        data: this client's training examples. A part of them, always the same, is held out from the candidates.
        data_sums: totals of the sums of the data of all clients, if the task uses such sums.

    Raises:
        WorkCancelledError: the server no longer waits.
    """
    section = probe.section_of(here.run)
    rest, held = data.hold_out(section.held_out, seeds.derive(here.subset_seed, "probe", here.node))
    if rest.examples < _FEWEST or not held.examples:
        log.warning("the probe is not answered: %d training examples here are too few", data.examples)
        return {}
    sums, every = probe.no_losses(here.run), probe.candidates(here.run)
    sums[probe.TRAINED] += rest.examples
    sums[probe.HELD] += held.examples
    for place, candidate in enumerate(every):
        for number in range(section.seeds):
            done = (place * section.seeds + number) * section.steps
            shown = _as_part(hooks, done, len(every) * section.seeds * section.steps)
            trial = _Trial(here, candidate, rest, data_sums)
            trial.train(number, shown)
            sums[probe.TRAIN][place] += trial.loss_over(rest, hooks)
            sums[probe.HELD_OUT][place] += trial.loss_over(held, hooks)
    return sums


class _Trial:
    """One candidate's training on this client."""

    def __init__(
        self, here: Resident, candidate: Candidate, data: TaskData, data_sums: Mapping[str, Tensor]
    ) -> None:
        self._here, self._candidate, self._data, self._data_sums = here, candidate, data, data_sums
        self._task: Task = discovery.get(candidate.run)
        self._guide = _guide(here, self._task, data)
        self._model = nn.Module()

    def train(self, number: int, hooks: Hooks) -> None:
        """From the weights drawn for this `number`, the same ones at every client."""
        here, pick = self._here, self._candidate.pick
        section = probe.section_of(here.run)
        path = ("probe", pick.family, str(pick.value), number)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(here.run.seed, *path))
            self._model = self._task.new_model()
            if self._data_sums:
                with torch.no_grad():
                    self._task.with_data_sums(self._model, dict(self._data_sums))
            self._model.to(here.device)
            keys = self._task.trained_keys(self._model, self._task.stage(1))
            trainer.train(
                self._task,
                self._model,
                self._data,
                self._guide,
                _train_section(here, section.lr, self._data.examples),
                1,
                seeds.generator(here.run.seed, *path, here.node),
                hooks,
                frozen=set(self._model.state_dict()) - set(keys),
                steps=section.steps,
            )

    def loss_over(self, data: TaskData, hooks: Hooks) -> float:
        """The task's loss summed over examples."""
        total = 0.0
        for batch in evaluation_batches(self._model, data, self._here.run.evaluate.batch, hooks.check):
            loss, _ = self._task.loss(self._model, batch, self._guide)
            total += probe.bounded(loss) * self._task.batch_size_of(batch)
        return total


def _guide(here: Resident, task: Task, data: TaskData) -> Guide:
    """That of a first round. There are no earlier models to compare with yet."""
    method = here.run.method.model_copy(update={"contrast": 0.0, "distil": 0.0, "virtual_share": 0.0})
    frame = task.frame(seeds.derive(here.run.seed, "frame"))
    memory = ClassMemory.empty(frame.vertices, task.memory_dim)
    return guide_at(task, frame.etf_KD, memory, 1, count_K=data.count_K, method=method).to(here.device)


def _train_section(here: Resident, lr: float, examples: int) -> TrainSection:
    section = here.run.train
    batch = fitting_batch(examples, max(section.batch, here.min_batch), here.min_batch)
    constant = {"schedule": "constant", "warmup_rounds": 0, "lr_decay": 1.0}
    return section.model_copy(update={**constant, "lr": lr or section.lr, "batch": batch})


def _as_part(hooks: Hooks, done: int, of: int) -> Hooks:
    """Hooks that report progress of one training as a part of the whole probe."""

    def report(step: LocalProgress) -> None:
        hooks.report(replace(step, step=min(of, done + step.step), steps=of))

    return replace(hooks, report=report)
