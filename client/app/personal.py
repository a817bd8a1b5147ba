"""A client's own models after the last round (`[personal]`): read out with its own class means, and fine-tuned.

Called by the app. Only statistics over the held-out examples go to the server; the fine-tuned model stays here.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fednc.client.app.resident_run import Resident
from fednc.client.app.withheld_sums import fitting_batch
from fednc.client.link.work_hooks import Hooks
from fednc.client.training import trainer
from fednc.common import seeds
from fednc.common.config.personal import PersonalSection
from fednc.common.learning.frame import Frame
from fednc.common.learning.memory_controls import with_blended_means
from fednc.common.learning.round_context import GLOBAL, PREVIOUS, Guide
from fednc.common.methods.api import Addition
from fednc.common.model_export import export
from fednc.common.tasks import personal
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import TaskData
from fednc.common.tasks.evaluation import evaluate
from fednc.common.tasks.metrics import Stats
from fednc.common.tasks.round_guide import memory_of
from fednc.common.tasks.stages import Stage

FOLDER = "personal"  # in the client's state folder of the run

log = logging.getLogger("fednc.client")


@dataclass(frozen=True)
class Personal:
    """A fine-tuned model.

    Attributes:
        stats: the report to the server; empty without held-out examples.
        guide: how the model is read out.
    """

    stats: Stats
    model: nn.Module
    guide: Guide


class _AgainstGlobal(Addition):
    """The final model as the companion of losses that compare with other models."""

    def __init__(self, model: nn.Module) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_(False)

    def companions(self) -> dict[str, nn.Module]:
        """See Addition."""
        return {GLOBAL: self._model, PREVIOUS: self._model}


def personalise(
    here: Resident, stage: Stage, settings: PersonalSection, guide: Guide, shared: Guide, hooks: Hooks
) -> Personal:
    """Fine-tune a copy of the final model, which `here.model` has loaded, and measure before and after.

    Args:
        guide: how the final model is read out at this client.
        shared: the same with the memory of all clients, for the blend.

    Raises:
        WorkCancelledError: the server no longer waits.
    """
    mine, held_out = here.at(stage)
    has_blend = here.run.method.reads_memory

    def read_out(model: nn.Module) -> Guide:
        return _blended(here, model, mine, shared, settings.tau, hooks) if has_blend else guide

    found = {personal.BEFORE: _measured(here, here.model, held_out, guide, hooks)}
    if has_blend:
        found[personal.BLENDED] = _measured(here, here.model, held_out, read_out(here.model), hooks)
    model = _tuned(here, stage, mine, settings, guide, hooks)
    own = read_out(model)
    found[personal.AFTER] = _measured(here, model, held_out, own, hooks)
    return Personal(personal.together(found) if held_out.examples else {}, model, own)


def keep(made: Personal, here: Resident, folder: Path | None) -> None:
    """Write the fine-tuned model for `fednc predict`. Nobody else gets it, so without a folder it is lost."""
    if folder is None:
        log.warning("the personal model is not kept: start the client with --state DIR to keep it there")
        return
    task, guide = here.task, made.guide
    etf_KD = guide.etf_KD.cpu()
    frame = Frame.from_tensor(etf_KD, 0) if task.label_space else Frame.without_vertices(task.run.frame.dim)
    names = task.class_names[: guide.classes] if guide.classes is not None else None
    try:
        export(
            folder / FOLDER,
            made.model,
            task,
            frame,
            memory_of(guide),
            here.run,
            names,
            guide.temperature,
            with_local=True,
        )
    except OSError as e:
        log.warning("the personal model cannot be written to %s: %s", folder / FOLDER, e.strerror)
        return
    log.info("the personal model is in %s: fednc predict %s DATA", folder / FOLDER, folder / FOLDER)


def _measured(here: Resident, model: nn.Module, data: TaskData, guide: Guide, hooks: Hooks) -> Stats:
    return evaluate(here.task, model, data, guide.to(here.device), here.run.evaluate.batch, hooks.check)


def _blended(here: Resident, model: nn.Module, mine: TaskData, shared: Guide, tau: float, hooks: Hooks) -> Guide:
    """These sums stay here, so no floor applies to them."""
    every_K = torch.ones_like(mine.count_K, dtype=torch.bool)
    sums = trainer.class_sums(here.task, model, mine, here.run.evaluate.batch, hooks, every_K, moment=False)
    return with_blended_means(shared, sums, tau)


def _tuned(
    here: Resident, stage: Stage, mine: TaskData, settings: PersonalSection, guide: Guide, hooks: Hooks
) -> nn.Module:
    """A copy of the model, trained on this client's data alone; the server's part of the method has no effect."""
    run, task, model = here.run, here.task, copy.deepcopy(here.model)
    batch = fitting_batch(mine.examples, max(stage.train.batch, here.min_batch), here.min_batch)
    section = stage.train.model_copy(
        update={
            "epochs": settings.epochs,
            "lr": settings.lr or stage.train.lr,
            "batch": batch,
            "schedule": "constant",
            "warmup_rounds": 0,
            "lr_decay": 1.0,
        }
    )
    torch.manual_seed(seeds.derive(run.seed, "personal", here.node))
    added = [_AgainstGlobal(model)] if run.method.compares_models else []
    trainer.train(
        task,
        model,
        mine,
        guide.to(here.device),
        section,
        1,
        seeds.generator(run.seed, "personal-batches", here.node),
        hooks,
        added,
        frozen=set(model.state_dict()) - _trained(here, model, stage, settings),
    )
    return model


def _trained(here: Resident, model: nn.Module, stage: Stage, settings: PersonalSection) -> set[str]:
    state: dict[str, Tensor] = model.state_dict()
    own = {key for key in state if here.task.aggregation(key) == Aggregation.LOCAL}
    keys = own | set(here.task.trained_keys(model, stage))
    return keys & here.task.head_keys(model) if settings.train == "head" else keys
