"""Whole runs on a GPU, if there is one: every method, sessions, initialisation; nothing stays on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.event_log import EventLog
from support import fewshot_run
from support.contract_run import CLIENTS, VARIANTS, config, history
from support.initialisation_federation import CLIENTS as OTHER_CLIENTS
from support.initialisation_federation import INIT, small_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
RUNS: dict[str, tuple[RunConfig, list[ClientConfig]]] = {
    **{name: (config(**changes), CLIENTS) for name, changes in VARIANTS.items()},
    "coarse": (config(train={"precision": "bf16"}), CLIENTS),
    "initialised": (small_run(INIT), OTHER_CLIENTS),
    "sessions": (fewshot_run.config(), fewshot_run.clients(fewshot_run.config())),
}


def run_on(device: str, name: str) -> RunResult:
    run, clients = RUNS[name]
    prepared = FederatedRun(run, EventLog(), torch.device(device))
    with LocalGrid(run, [replace(client, device=device) for client in clients]) as grid:
        return prepared.execute(grid, Surroundings(name_of=grid.name_of))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_a_gpu_equals_one_on_a_cpu_except_for_rounding(name: str) -> None:
    here, there = (history(run_on(device, name)) for device in ("cpu", "cuda"))
    for on_cpu, on_gpu in zip(here, there, strict=True):
        assert on_gpu.keys() == on_cpu.keys()
        assert on_gpu["examples"] == on_cpu["examples"]
        assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=0.1)


def test_the_models_bytes_are_on_the_cpu() -> None:
    tensors: dict[str, Any] = run_on("cuda", "fednc").state.model
    assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}
