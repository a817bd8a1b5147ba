"""A look at the clients with the served model: one round without training, which can raise drift alarms.

`fednc pipeline watch` does it every `triggers.look_every_h`. Costs each client one pass over its data, and sends
class sums only. Changes no model.
"""

from __future__ import annotations

import json
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
from fednc.ops import quarantine
from fednc.ops.pipelines.journal import ALARM, DATA, FEDERATED, Cause, Journal
from fednc.ops.pipelines.pipeline_file import PipelineFile
from fednc.ops.pipelines.runner import inputs_of
from fednc.ops.pipelines.work import Carriers, RunOrder
from fednc.ops.registry.names import CHAMPION
from fednc.ops.registry.registry import ModelRegistry
from fednc.server.storage.data_manifests import FILE, read_manifests
from fednc.server.storage.events import ClientDrifts, Event

LAST = "look"  # folder of the last look, in the pipeline's
SPELLS = "alarms.json"  # in the pipeline's folder: since when each client whose data nobody knows has drifted
_OF_THE_FILE = ("name", "server", "link", "rounds", "split", "evaluate")  # tables that say who is asked, and where
_WITHOUT = ("init", "sessions", "personal", "probe", "track")  # tables of the run file that only training needs


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
    """One round that only sums features of the served model.

    Task and model are those of the served version: since then a search may have found others, or the file may
    have changed. Who takes part is up to the file.
    """
    alias = file.deploy.alias if file.deploy else CHAMPION
    served = ModelRegistry(file.store).resolve(f"{file.model}@{alias}")
    model = load(served.folder)
    trained = model.run.model_dump(mode="json", exclude_unset=True)
    tables: dict[str, Any] = {
        key: value for key, value in trained.items() if key not in (*_WITHOUT, *_OF_THE_FILE)
    }
    tables |= {key: value for key, value in deepcopy(file.tables).items() if key in _OF_THE_FILE}
    tables |= {"method": {"name": "fednc"}, "train": {"epochs": 0}}
    tables["rounds"] = {**tables.get("rounds", {}), "total": 1}
    try:
        run = parse_run(tables, source=f"a look with {served}")
    except ConfigError as e:
        raise ConfigError(f"triggers.look_every_h: this run cannot be looked at without training. {e}") from e
    quarantine.admit(run, unchecked=not file.checked_plugins)
    weights = folder / WEIGHTS
    wanted = discovery.get(run).new_model().state_dict().keys()  # a model that is not trained has no projection
    state = model.model.state_dict()
    write_atomically(weights, save({key: value.contiguous() for key, value in state.items() if key in wanted}))
    return run.model_copy(update={"task": run.task.model_copy(update={"weights": str(weights)})})


def _alarms(file: PipelineFile, run: RunConfig, alarms: list[ClientDrifts], folder: Path) -> list[Cause]:
    """A client counts once for each state of its data: it may differ from the others for good reasons.

    If nobody knows its state, it counts once until a look finds that its drift is over.
    """
    if not file.triggers.alarms:
        return []
    inputs, said = inputs_of(file, run), read_manifests(folder)
    before, spells, found = _spells(file), dict[str, str](), []
    for event in alarms:
        state = inputs.get(f"client {event.node}") or (said[event.node].fingerprint if event.node in said else "")
        if not state:
            who = event.node or f"unlisted: {', '.join(event.classes)}"
            state = spells[who] = before.get(who) or f"{who} since {time.time():.3f}"
        found.append(Cause(ALARM, event.text, f"drift {event.node} {state}"))
    write_atomically(file.place / SPELLS, json.dumps(spells).encode())
    return found


def _spells(file: PipelineFile) -> dict[str, str]:
    try:
        kept = json.loads((file.place / SPELLS).read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(who): str(since) for who, since in kept.items()} if isinstance(kept, dict) else {}


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
