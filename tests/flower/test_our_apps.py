"""fednc's own apps on stock Flower: what the bundle holds, and the same model, bit for bit, as over our link."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig, parse_run
from fednc.server.rounds.result_files import summary_of, write_files
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from support.shipped_commands import our_link
from support.stock_flower import BIN, environment, stock_flower

BUNDLE = Path(__file__).parents[2] / "deploy" / "flower"
NAMES = ["part-0", "part-1"]  # the names that nodes without one get in the simulation engine
CARRIED_BY = ("seconds", "bytes_up", "bytes_down", "worst_client")  # what differs between the carriers


def the_run(folder: Path) -> RunConfig:
    classes = [str(i) for i in range(10)]
    values: dict[str, Any] = {
        "seed": 5,
        "task": {"classes": classes, "model": "cnn", "width": 8, "size": 8, "channels": 1, "augment": "crop-flip"},
        "frame": {"dim": 16},
        "method": {"name": "fednc", "anchor": 0.1, "warmup_rounds": 0},
        "rounds": {"total": 2, "min_clients": 2},
        "split": {"parts": 2, "alpha": 0.3, "seed": 3},
        "evaluate": {"test": "digits"},
        "server": {"runs": str(folder / "runs")},
    }
    return parse_run(values)


def on_local_grid(run: RunConfig, folder: Path) -> Path:
    clients = [ClientConfig(name=name, data="digits", device="cpu") for name in NAMES]
    with LocalGrid(run, clients) as grid:
        result = FederatedRun(run, EventLog()).execute(grid)
    write_files(folder, result, summary_of("local", result))
    return folder


def as_run_file(run: RunConfig) -> str:
    """TOML with every value, so that both ends read the values that stock Flower carries as JSON."""
    lines: list[str] = []

    def table(values: dict[str, Any], path: str) -> None:
        plain = {key: value for key, value in values.items() if not isinstance(value, dict) and value is not None}
        lines.extend([f"[{path}]"] if path else [])
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in plain.items())
        for key, value in values.items():
            if isinstance(value, dict):
                table(value, f"{path}.{key}" if path else key)

    table(run.model_dump(mode="json"), "")
    return "\n".join(lines) + "\n"


def on_our_link(run: RunConfig, folder: Path) -> Path:
    run_file = folder / "run.toml"
    run_file.write_text(as_run_file(run))
    with our_link(folder, str(run_file)) as link:
        for index, name in enumerate(NAMES):
            link.join(name, "--data", "digits", "--device", "cpu", "--partition", f"{index}/2", "--threads", "1")
        link.finish()
    return folder / "run"


def on_superlink(run: RunConfig, folder: Path) -> Path:
    """With the run configuration that `fednc check` writes."""
    with stock_flower(folder) as flower:
        (folder / "run.toml").write_text(as_run_file(run))
        check = [BIN / "fednc", "check", "run.toml", "--flower", "run-config.toml"]
        subprocess.run(check, env=flower.env, cwd=folder, check=True, capture_output=True)
        for index, name in enumerate(NAMES):
            config = {"name": name, "partition-id": index, "num-partitions": 2, "data": "digits", "device": "cpu"}
            flower.add_node(name, config)
        flower.run(BUNDLE)
    return next((folder / "runs").iterdir())


def on_simulation(run: RunConfig, folder: Path) -> Path:
    if find_spec("ray") is None:
        pytest.skip("ray is not installed, the simulation engine was not tried: pip install 'fednc[flower-sim]'")
    with stock_flower(folder, simulated=2) as flower:
        flower.run(BUNDLE, {"run": run.model_dump_json(), "data": "digits"})
    return next((folder / "runs").iterdir())


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    rounds = json.loads((folder / "rounds.json").read_text())
    return [{key: value for key, value in each.items() if key not in CARRIED_BY} for each in rounds]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("carrier", [on_our_link, on_superlink, on_simulation])
def test_every_carrier_gives_the_same_bits(carrier: Callable[[RunConfig, Path], Path], tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "other").mkdir()
    run = the_run(tmp_path / "other")
    expected, found = on_local_grid(run, tmp_path / "local"), carrier(run, tmp_path / "other")
    one, other = (load_file(place / "model" / "model.safetensors") for place in (expected, found))
    assert list(one) == list(other)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    assert rounds_of(expected) == rounds_of(found)
    assert rounds_of(found)[-1]["test"]["accuracy"] > 0.2, "the run has learnt nothing"


def build(bundle: Path, folder: Path) -> zipfile.ZipFile:
    command = [BIN / "flwr", "build", "--app", bundle]
    subprocess.run(command, env=environment(folder / "home"), cwd=folder, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.fab")))


def test_the_bundle_holds_only_the_names_of_the_two_apps(tmp_path: Path) -> None:
    """Also if a run file and secrets lie beside it, with suffixes that Flower bundles by default."""
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / "flower"))
    for name in ("run.toml", "flower.toml", "token.json", "key.py", "notes.md", "deep/secret.yaml"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("secret = 1\n")
    with build(bundle, tmp_path) as fab:
        assert sorted(fab.namelist()) == [".info/CONTENT", "pyproject.toml"]
        text = fab.read("pyproject.toml").decode()
    assert 'serverapp = "fednc.server.flower_app:app"' in text
    assert 'clientapp = "fednc.client.app.flower_app:app"' in text
    assert 'run = ""' in text
