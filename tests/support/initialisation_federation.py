"""Three clients with digits in one process, for the tests of the federated initialisation."""

from __future__ import annotations

from typing import Any

import torch

from fednc.client.app.flower_app import app as fednc_app
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig
from fednc.common.initialise.probe import Probe
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.tasks.round_guide import guide_at
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.event_log import EventLog
from support.initialisation_digits import Place, digits_run
from support.runs_on_grids import App, in_one_process

NAMES = ("anna", "bert", "carl")
CLIENTS = [ClientConfig(name=name, data="digits", device="cpu", val_share=0) for name in NAMES]
SPLIT = {"kind": "iid", "parts": 3}
INIT = {"kind": "nio-exact", "iters": 4, "batch": 16, "lr": 0.05, "min_rise": 0.0, "gamma": 100.0}


def small_run(init: dict[str, Any] | None = None, rounds: int = 1, min_clients: int = 3, **keys: Any) -> RunConfig:
    tables = {"task": {"width": 8}, "frame": {"dim": 16}, "train": {"batch": 256}, **keys}
    chosen = {"total": rounds, "min_clients": min_clients}
    return digits_run(**{**tables, "rounds": chosen, **({"init": init} if init is not None else {})})


def local(run: RunConfig, app: App = fednc_app, around: Surroundings | None = None) -> RunResult:
    return in_one_process(run, CLIENTS, app, around)


def told(result: RunResult) -> dict[str, Any]:
    found: dict[str, Any] = result.history.summary()["init"]
    return found


def same_bits(one: RunResult, other: RunResult) -> bool:
    return all(torch.equal(value, other.state.model[key]) for key, value in one.state.model.items())


def central_place(run: RunConfig) -> tuple[Place, Probe]:
    """What one client has: data, and the weights that the server drew."""
    here, prepared = Place(run), FederatedRun(run, EventLog())
    here.model.load_state_dict(prepared.state.model)
    guide = guide_at(here.task, prepared.frame.etf_KD, ClassMemory.empty(10, run.frame.dim), 1)
    return here, Probe(here.task, here.model, guide, here.task.shared_keys(here.model))
