"""A pipeline's run on Flower's simulation engine gives the bits of one in this process, with the same client
names.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fednc.cli.pipeline import in_process
from fednc.ops.pipelines.on_flower import on_flower
from fednc.ops.pipelines.pipeline_file import PipelineFile
from fednc.ops.pipelines.work import RunOrder
from fednc.server.storage.events import Event, RoundCompleted
from support.contract_run import config


@pytest.mark.timeout(300)
def test_the_simulation_engine_gives_the_bits_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("ray") is None:
        pytest.skip("ray is not installed, the simulation engine was not tried: pip install 'fednc[flower-sim]'")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the rounding of sums depends on the number of threads
    run, heard = config(), list[Event]()
    clients = {"carl": "digits", "anna": "digits", "bert": "digits"}
    file = PipelineFile(run=run.model_dump(mode="json", exclude_unset=True), clients=clients, device="cpu")
    for carrier, place in ((in_process, tmp_path / "here"), (on_flower, tmp_path / "flower")):
        place.mkdir()
        carrier(RunOrder(file, run, clients, place, heard.append if carrier is on_flower else lambda _event: None))
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("here", "flower"))
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert [event.record.round for event in heard if isinstance(event, RoundCompleted)] == [1, 2]
    assert not (tmp_path / "flower" / "flower").exists()
