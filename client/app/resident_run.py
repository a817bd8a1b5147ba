"""What a client keeps between messages: task, model and data of a run, loaded once.

Flower calls a ClientApp per message; this cache, keyed by run and node, makes it resident. On stock Flower, where
each message has a process of its own, it is filled anew every time and everything still works.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from flwr.app import Context
from torch import nn

from fednc.common import seeds
from fednc.common.config.run import RunConfig
from fednc.common.device import pick_device
from fednc.common.errors import ConfigError, DataError
from fednc.common.tasks import discovery as tasks
from fednc.common.tasks.api import Part, Task, TaskData
from fednc.common.tasks.stages import Stage

log = logging.getLogger("fednc.client")


@dataclass(frozen=True)
class Resident:
    """A run as one client lives it.

    Attributes:
        node: what its random streams derive from besides the run's seed.
        subset_seed: what decides which examples it holds out and draws; the run's seed, unless its owner says.
        min_sum_examples: class sums over fewer examples stay here; the run's floor, or its own if stricter.
        min_batch: it trains on no smaller batch.
        told: by stage, the classes whose sums were said to stay here.
    """

    run: RunConfig
    task: Task
    model: nn.Module
    train: TaskData
    held_out: TaskData
    device: torch.device
    node: str
    min_sum_examples: int
    subset_seed: int = 0
    min_batch: int = 0
    told: dict[int, set[str]] = field(default_factory=dict)
    _stages: dict[int, tuple[TaskData, TaskData]] = field(default_factory=dict)

    def at(self, stage: Stage) -> tuple[TaskData, TaskData]:
        """(what it trains on, what it holds out) in a stage: examples of its classes; of all classes so far."""
        if not self.task.takes_sessions:
            return self.train, self.held_out
        if stage.number not in self._stages:
            mine = self.train.of_classes(stage.earlier, stage.classes)
            if stage.shots:
                mine = mine.few(stage.shots, seeds.derive(self.subset_seed, "shots", self.node))
            self._stages[stage.number] = mine, self.held_out.of_classes(0, stage.classes)
        return self._stages[stage.number]


class Residents:
    """Those of this process: of all nodes of the runs used last. A run left without a word is forgotten."""

    def __init__(self, runs: int = 2) -> None:
        self._most = runs
        self._by_run: OrderedDict[int, dict[int, Resident]] = OrderedDict()  # the run used last at the end

    def get(self, run_id: int, node_id: int, load: Callable[[], Resident]) -> Resident:
        """The node's resident, loaded on first use. Raises what `load` raises."""
        nodes = self._by_run.setdefault(run_id, {})
        self._by_run.move_to_end(run_id)
        if len(self._by_run) > self._most:
            self._by_run.popitem(last=False)
        if node_id not in nodes:
            nodes[node_id] = load()
        return nodes[node_id]

    def forget(self, run_id: int, node_id: int) -> None:
        """The run is over for this node."""
        self._by_run.get(run_id, {}).pop(node_id, None)


_RESIDENTS = Residents()


def resident(context: Context, run: RunConfig) -> Resident:
    """The resident state of this node in this run, loaded on first use.

    Raises:
        ConfigError: a task or device that is not here, or a task that the owner does not allow.
        DataError: data that does not fit the run.
    """
    check_allowed(context, run)
    found = _RESIDENTS.get(context.run_id, context.node_id, lambda: _load(context, run))
    if found.run == run.model_copy(update={"server": found.run.server}):
        return found
    forget(context)  # classes have got their names since, or a run that goes on has another run file
    return _RESIDENTS.get(context.run_id, context.node_id, lambda: _load(context, run))


def check_allowed(context: Context, run: RunConfig) -> None:
    """Asked before a run's task is imported. Raises ConfigError where the owner allows others only."""
    allowed = str(context.node_config.get("allowed-tasks", "")).split()
    if allowed and run.task.name not in allowed:
        raise ConfigError(
            f"the run's task is {run.task.name!r}, this client runs {', '.join(allowed)} only: start it with "
            f"--allow-task {run.task.name} too if it may run that"
        )


def forget(context: Context) -> None:
    """The run is over for this node."""
    _RESIDENTS.forget(context.run_id, context.node_id)


def _load(context: Context, run: RunConfig) -> Resident:
    settings = context.node_config
    task = tasks.get(run)
    device = pick_device(str(settings.get("device", "auto")))
    data = task.load_train(_data_spec(context), _part(context, run), run.split)
    node = _name(context)
    for note in data.notes:
        log.info("data of %s: %s", node, note)
    share = float(settings.get("val-share", 0.1))
    subset_seed = 0 if settings.get("secret") else run.seed  # `node` holds the secret
    train, held_out = data.hold_out(share, seeds.derive(subset_seed, "hold-out", node))
    return Resident(
        run=run,
        task=task,
        model=task.build_model().to(device),
        train=train.to(device),
        held_out=held_out.to(device),
        device=device,
        node=node,
        subset_seed=subset_seed,
        min_batch=int(settings.get("min-batch", 0)),
        min_sum_examples=max(task.min_sum_examples, int(settings.get("min-sum-examples", 0))),
    )


def _name(context: Context) -> str:
    """What random streams derive from: the node's name, else its part of the split, else Flower's random id.

    With a secret of its owner's, nobody else can draw the same.
    """
    settings = context.node_config
    if secret := str(settings.get("secret", "")):
        return f"{secret}/{settings.get('name', '')}"
    part = settings.get("partition-id")
    return str(settings.get("name", context.node_id if part is None else f"part-{part}"))


def _data_spec(context: Context) -> str:
    spec = str(context.node_config.get("data", context.run_config.get("data", "")))
    if not spec:
        raise DataError(
            "this client has no data: start it with --data, e.g. --data digits or --data npz:PATH; on stock "
            "Flower set `data` in --node-config or in the run configuration"
        )
    return spec


def _part(context: Context, run: RunConfig) -> Part | None:
    if run.split is None:
        return None
    settings = context.node_config
    if "partition-id" not in settings or "num-partitions" not in settings:
        raise ConfigError(
            "the run has a simulated [split], but this node has no part of it: set partition-id and "
            "num-partitions in --node-config"
        )
    return Part(int(settings["partition-id"]), int(settings["num-partitions"]))
