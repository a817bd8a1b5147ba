"""A look at the clients with the served model: one round without training, which can raise drift alarms.

`fednc pipeline watch` does it every `triggers.look_every_h`. Costs each client one pass over its data, and sends
class sums only. Changes no model.
"""

from __future__ import annotations

import shutil
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import save

from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError
from fednc.common.files import private_folder, write_atomically
from fednc.common.model_export import WEIGHTS, load
from fednc.common.tasks import discovery
from fednc.ops.pipelines.journal import ALARM, DATA, FEDERATED, Cause, Journal
from fednc.ops.pipelines.pipeline_file import PipelineFile
from fednc.ops.pipelines.runner import inputs_of
from fednc.ops.pipelines.work import Carriers, RunOrder
from fednc.ops.registry.names import CHAMPION
from fednc.ops.registry.registry import ModelRegistry
from fednc.server.storage.data_manifests import FILE, read_manifests
from fednc.server.storage.events import ClientDrifts, Event

LAST = "look"  # folder of the last look, in the pipeline's
_WITHOUT = ("init", "sessions", "personal", "track")  # tables of the run file that only training needs


def is_due(file: PipelineFile) -> bool:
    """Whether it is time to look."""
    every_h, last = file.triggers.look_every_h, file.place / LAST
    return every_h > 0 and (not last.exists() or time.time() - last.stat().st_mtime >= 3600 * every_h)


def look(file: PipelineFile, run: RunConfig, carriers: Carriers) -> Cause | None:
    """Ask the clients; the reason for a new run of the pipeline that their answers are, or None.

    Raises:
        ConfigError: no model is served yet, or the task has no class sums.
        QuorumError: too few clients.
    """
    alarms: list[ClientDrifts] = []

    def hear(event: Event) -> None:
        if isinstance(event, ClientDrifts):
            alarms.append(event)

    folder = file.place / LAST
    shutil.rmtree(folder, ignore_errors=True)
    private_folder(folder)
    carriers.run(RunOrder(file, _run_of(file, folder), file.clients, folder, hear))
    known = {cause.key for one in Journal(file.place).runs() for cause in one.causes}
    found = [*_alarms(file, run, alarms, folder), *_new_manifests(file, folder)]
    return next((cause for cause in found if cause.key not in known), None)


def _run_of(file: PipelineFile, folder: Path) -> RunConfig:
    """One round that only sums features of the served model."""
    alias = file.deploy.alias if file.deploy else CHAMPION
    served = ModelRegistry(file.store).resolve(f"{file.model}@{alias}")
    tables: dict[str, Any] = {key: value for key, value in deepcopy(file.tables).items() if key not in _WITHOUT}
    tables |= {"method": {"name": "fednc"}, "train": {"epochs": 0}}
    tables["rounds"] = {**tables.get("rounds", {}), "total": 1}
    try:
        run = parse_run(tables, source=f"a look with {served}")
    except ConfigError as e:
        raise ConfigError(f"triggers.look_every_h: this run cannot be looked at without training. {e}") from e
    weights = folder / WEIGHTS
    wanted = discovery.get(run).new_model().state_dict().keys()  # a model that is not trained has no projection
    state = load(served.folder).model.state_dict()
    write_atomically(weights, save({key: value.contiguous() for key, value in state.items() if key in wanted}))
    return run.model_copy(update={"task": run.task.model_copy(update={"weights": str(weights)})})


def _alarms(file: PipelineFile, run: RunConfig, alarms: list[ClientDrifts], folder: Path) -> list[Cause]:
    """A client counts once for each state of its data: it may differ from the others for good reasons."""
    inputs, said = inputs_of(file, run), read_manifests(folder)
    found = []
    for event in alarms if file.triggers.alarms else []:
        data = inputs.get(f"client {event.node}") or (said[event.node].fingerprint if event.node in said else "")
        found.append(Cause(ALARM, event.text, f"drift {event.node} {data}"))
    return found


def _new_manifests(file: PipelineFile, folder: Path) -> list[Cause]:
    """Clients that come by themselves and whose data are others than in the last run, by their fingerprints."""
    runs = sorted((file.place / FEDERATED).glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime)
    before = read_manifests(runs[-1].parent) if runs and file.triggers.data and not file.clients else {}
    changed = {
        name: now.fingerprint
        for name, now in read_manifests(folder).items()
        if name in before and now.fingerprint and now.fingerprint != before[name].fingerprint
    }
    if not changed:
        return []
    key = " ".join(f"{name}={digest}" for name, digest in sorted(changed.items()))
    return [Cause(DATA, f"changed since the last run: {', '.join(sorted(changed))}", f"data {key}")]
