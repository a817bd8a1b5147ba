"""What a client keeps between messages: task, model and data of a run, loaded once.

Flower calls a ClientApp once per message; this cache, keyed by run and node, keeps the run loaded. On stock
Flower, where each message may have its own process, the run is loaded again each time.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from flwr.app import Context
from torch import Tensor, nn

from fednc.common import fault_injection, seeds
from fednc.common.config.run import RunConfig
from fednc.common.device import pick_device
from fednc.common.errors import ConfigError, DataError
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Part, Task, TaskData
from fednc.common.tasks.stages import Stage

log = logging.getLogger("fednc.client")
_READING = ("seed", "task", "sessions", "split", "evaluate")  # what decides about the examples of a node


@dataclass(frozen=True)
class Resident:
    """A run that one client has loaded.

    Attributes:
        node: its random streams derive from this and the run's seed. subset_seed: decides which examples are held
        out and drawn; the run's seed, unless the owner has a secret. min_sum_examples: class sums over fewer
        examples are not sent; the run's floor, or the client's if stricter. min_data_sum_examples: the same for
        the sums of the data before round 1. min_batch: the fewest examples in a batch. told: by stage, the classes
        that the log has named as not sent. local: the tensors of the model that never leave this client, as they
        were drawn.
    """

    run: RunConfig
    task: Task
    model: nn.Module
    train: TaskData
    held_out: TaskData
    device: torch.device
    node: str
    min_sum_examples: int
    min_data_sum_examples: int = 0
    subset_seed: int = 0
    min_batch: int = 0
    told: dict[int, set[str]] = field(default_factory=dict)
    local: dict[str, Tensor] = field(default_factory=dict)
    _stages: dict[int, tuple[TaskData, TaskData]] = field(default_factory=dict)

    def at(self, stage: Stage) -> tuple[TaskData, TaskData]:
        """(training data, held-out data) in a stage: examples of its own classes, of all classes so far."""
        if not self.task.takes_sessions:
            return self.train, self.held_out
        if stage.number not in self._stages:
            mine = self.train.of_classes(stage.earlier, stage.classes)
            if stage.shots:
                mine = mine.few(stage.shots, seeds.derive(self.subset_seed, "shots", self.node))
            self._stages[stage.number] = mine, self.held_out.of_classes(0, stage.classes)
        return self._stages[stage.number]


class Residents:
    """The loaded runs of this process, for all its nodes; only the runs used last are kept."""

    def __init__(self, runs: int = 2) -> None:
        self._most = runs
        self._lock = threading.Lock()
        self._by_run: OrderedDict[int, dict[int, Resident]] = OrderedDict()  # the run used last comes last

    def get(self, run_id: int, node_id: int, load: Callable[[], Resident]) -> Resident:
        """The node's resident, loaded on first use. Raises what `load` raises."""
        with self._lock:  # nodes of one process prepare in threads of their own
            nodes = self._by_run.setdefault(run_id, {})
            self._by_run.move_to_end(run_id)
            if len(self._by_run) > self._most:
                self._by_run.popitem(last=False)
        if node_id not in nodes:
            nodes[node_id] = load()
        return nodes[node_id]

    def take(self, run_id: int, node_id: int) -> Resident | None:
        """The run is over for this node; what it had loaded."""
        with self._lock:
            return self._by_run.get(run_id, {}).pop(node_id, None)


_RESIDENTS = Residents()


def resident(context: Context, run: RunConfig) -> Resident:
    """This node's loaded run, loaded on first use.

    Raises:
        ConfigError: no such task or device here, or a task that the owner does not allow.
        DataError: the data does not fit the run.
    """
    check_allowed(context, run)
    found = _RESIDENTS.get(context.run_id, context.node_id, lambda: _load(context, run))
    if found.run == run.model_copy(update={"server": found.run.server}):
        return found
    forget(context)  # classes were named since, or a continued run has another run file
    return _RESIDENTS.get(context.run_id, context.node_id, lambda: _load(context, run))


def succeed(before: Context, context: Context, run: RunConfig) -> Resident:
    """This node's next run. Unloads the run before, except for its data if the next run reads the same.

    Raises:
        ConfigError, DataError: see `resident`.
    """
    earlier = _RESIDENTS.take(before.run_id, before.node_id)
    check_allowed(context, run)
    if earlier is not None and not _reads_alike(earlier.run, run):
        earlier = None
    return _RESIDENTS.get(context.run_id, context.node_id, lambda: _load(context, run, earlier))


def _reads_alike(one: RunConfig, other: RunConfig) -> bool:
    """Whether both runs read the same examples from the same data; see `Task.load_train`."""
    return all(getattr(one, key) == getattr(other, key) for key in _READING)


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
    _RESIDENTS.take(context.run_id, context.node_id)


def _load(context: Context, run: RunConfig, earlier: Resident | None = None) -> Resident:
    """Load task and model, and the data unless `earlier` has it."""
    settings = context.node_config
    task = discovery.get(run)
    device = pick_device(str(settings.get("device", "auto")))
    node = _name(context)
    subset_seed = 0 if settings.get("secret") else run.seed  # `node` contains the secret
    if earlier is not None:
        train, held_out = earlier.train, earlier.held_out
    else:
        train, held_out = _load_data(context, run, task, seeds.derive(subset_seed, "hold-out", node))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(run.seed, "model"))  # what stays here begins alike on all clients
        model = task.new_model()
    shared, least = set(task.shared_keys(model)), int(settings.get("min-sum-examples", 0))
    return Resident(
        run=run,
        task=task,
        model=model.to(device),
        local={key: value.clone() for key, value in model.state_dict().items() if key not in shared},
        train=train.to(device),
        held_out=held_out.to(device),
        device=device,
        node=node,
        subset_seed=subset_seed,
        min_batch=int(settings.get("min-batch", 0)),
        min_sum_examples=max(task.min_sum_examples, least),
        min_data_sum_examples=max(task.min_data_sum_examples, int(settings.get("min-data-sum-examples", least))),
    )


def _load_data(context: Context, run: RunConfig, task: Task, seed: int) -> tuple[TaskData, TaskData]:
    """(training data, held-out data); `seed` decides which examples are held out."""
    fault_injection.at("client.data")
    data = task.load_train(_data_spec(context), _part(context, run), run.split)
    for note in data.notes:
        log.info("data of %s: %s", _name(context), note)
    return data.hold_out(float(context.node_config.get("val-share", 0.1)), seed)


def _name(context: Context) -> str:
    """What random streams derive from: the node's name, else its part of the split, else Flower's random id.

    With the owner's secret, nobody else can repeat the draws.
    """
    settings = context.node_config
    if secret := str(settings.get("secret", "")):
        return f"{secret}/{settings.get('name', '')}"
    part = settings.get("partition-id")
    listed = _listed(context)[0]
    return str(settings.get("name", listed or (context.node_id if part is None else f"part-{part}")))


def _listed(context: Context) -> tuple[str, str]:
    """(name, data spec) of this node in the run configuration's `clients`, by its partition; ("", "") if it lists
    none.

    For simulated nodes, which have no configuration of their own. Raises ConfigError.
    """
    text, part = str(context.run_config.get("clients", "")), context.node_config.get("partition-id")
    if not text or part is None:
        return "", ""
    try:
        name, spec = list(json.loads(text).items())[int(part)]
    except (ValueError, AttributeError, IndexError) as e:
        raise ConfigError(
            f"the run configuration's key 'clients' does not name client {part} and its data: {text!r:.80}"
        ) from e
    return str(name), str(spec)


def _data_spec(context: Context) -> str:
    listed = _listed(context)[1]
    spec = str(context.node_config.get("data", listed or context.run_config.get("data", "")))
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
