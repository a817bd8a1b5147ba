"""Checkpoints: complete or absent, the newest intact one is used, and every format ever written stays readable.

`tests/assets/checkpoint-1` has the first version of the format; it must always load.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError, DataError
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.checkpoint import Checkpoint, Checkpoints
from fednc.server.storage.event_log import EventLog

ASSETS = Path(__file__).parents[2] / "assets"


def checkpoint(number: int, config: str = "c" * 64) -> Checkpoint:
    draw = torch.Generator().manual_seed(number)
    tensors = {
        "model.w": torch.randn(4, 3, generator=draw).t(),  # not contiguous
        "model.half": torch.randn(5, generator=draw).bfloat16(),
        "model.steps": torch.tensor(number),
        "memory.seen_K": torch.tensor([True, False]),
        "frame.etf_KD": torch.eye(2, 3),
    }
    return Checkpoint(
        round=number,
        config_sha256=config,
        tensors=tensors,
        history=[{"round": number, "loss": None}],
        parts={"edge-1": 1},
        bytes_up=10,
        bytes_down=20,
    )


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert set(one.tensors) == set(other.tensors)
    for key, value in one.tensors.items():
        assert value.dtype == other.tensors[key].dtype
        assert torch.equal(value, other.tensors[key])
    for field in ("round", "config_sha256", "history", "parts", "bytes_up", "bytes_down"):
        assert getattr(one, field) == getattr(other, field)


def test_a_saved_checkpoint_is_loaded_unchanged(tmp_path):
    saved = checkpoint(3)
    Checkpoints(tmp_path, keep=2).save(saved)
    assert_same(Checkpoints(tmp_path, keep=2).latest("c" * 64), saved)


def test_a_new_run_has_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path, keep=2).latest("c" * 64) is None


def test_the_last_n_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number in range(1, 6):
        checkpoints.save(checkpoint(number))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    stems = ("round-000004", "round-000005")
    assert names == sorted(f"{stem}.{end}" for stem in stems for end in ("json", "safetensors"))


def test_no_checkpoints_are_kept_if_none_are_wanted(tmp_path):
    Checkpoints(tmp_path, keep=0).save(checkpoint(1))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing tensors", "half a manifest", "newer format"])
def test_damage_falls_back_to_the_round_before(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(checkpoint(1))
    checkpoints.save(checkpoint(2))
    tensors = tmp_path / "checkpoints" / "round-000002.safetensors"
    manifest = tensors.with_suffix(".json")
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif damage == "flipped":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "missing tensors":
        tensors.unlink()
    elif damage == "half a manifest":
        manifest.write_text(manifest.read_text()[:40])
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 999}))
    assert_same(checkpoints.latest("c" * 64), checkpoint(1))


def test_without_an_intact_checkpoint_the_error_says_so(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(checkpoint(1))
    (tmp_path / "checkpoints" / "round-000001.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="intact"):
        checkpoints.latest("c" * 64)


def test_another_run_file_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(checkpoint(1))
    with pytest.raises(ConfigError, match="another run file"):
        checkpoints.latest("d" * 64)


def test_the_first_format_still_loads():
    assert_same(Checkpoints(ASSETS / "checkpoint-1", keep=0).latest("c" * 64), checkpoint(7))


def test_a_checkpoint_from_before_sessions_existed_resumes_to_the_same_model(tmp_path):
    run = parse_run(
        {
            "seed": 3,
            "task": {"classes": list("0123456789"), "width": 8, "size": 8, "channels": 1},
            "frame": {"dim": 16},
            "rounds": {"total": 2, "min_clients": 2},
            "evaluate": {"test": "digits"},
            "split": {"kind": "iid", "parts": 2},
        }
    )
    clients = [ClientConfig(name=name, data="digits", device="cpu") for name in "ab"]
    checkpoints = Checkpoints(tmp_path, keep=2)
    with LocalGrid(run, clients) as grid:
        undisturbed = FederatedRun(run, EventLog()).execute(grid, Surroundings(checkpoints=checkpoints))
    (tmp_path / "checkpoints" / "round-000002.json").unlink()
    manifest = tmp_path / "checkpoints" / "round-000001.json"
    first = json.loads((ASSETS / "checkpoint-1" / "checkpoints" / "round-000007.json").read_text())
    now = json.loads(manifest.read_text())
    assert now.keys() - first.keys() == {"accepted", "classes", "config", "opened", "picked"}
    manifest.write_text(json.dumps({key: now[key] for key in first} | {"format": first["format"]}))
    again = FederatedRun(run, EventLog())
    again.restore(checkpoints.latest(run.digest))
    with LocalGrid(run, clients) as grid:
        resumed = again.execute(grid)
    assert [record.round for record in resumed.history.rounds] == [1, 2]
    assert all(torch.equal(value, resumed.state.model[key]) for key, value in undisturbed.state.model.items())
