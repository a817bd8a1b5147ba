"""An exported model gives the same bits as its source, and files that do not belong together are refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError, DataError
from fednc.common.files import write_atomically
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import Frame, draw_frame
from fednc.common.learning.round_context import Guide
from fednc.common.methods import registry
from fednc.common.model_export import FOLDER, MANIFEST, WEIGHTS, export, load
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Task

CLASSES = ["ant", "bee", "cat"]
SIZE = 8


@dataclass(frozen=True)
class Trained:
    """The result of a run."""

    task: Task
    model: nn.Module
    frame: Frame
    memory: ClassMemory

    def scores(self, inputs: Tensor) -> Tensor:
        """The run's own scores, without the export."""
        guide = Guide(
            method=self.task.run.method,
            etf_KD=self.frame.etf_KD,
            mean_KD=self.memory.mean_KD,
            seen_K=self.memory.seen_K,
            count_K=torch.zeros(self.task.label_space, dtype=torch.int64),
        )
        with torch.no_grad():
            return self.task.scores(self.model.eval(), inputs, guide)[:, : len(CLASSES)]


def trained(method: str = "fednc", seed: int = 0, **task_options: Any) -> Trained:
    """A model with random weights and running statistics, and a memory without one of the classes."""
    task = discovery.get(
        parse_run(
            {
                "task": {
                    "name": "image",
                    "classes": CLASSES,
                    "size": SIZE,
                    "channels": 1,
                    "width": 8,
                    **task_options,
                },
                "frame": {"dim": 16, "vertices": 5},
                "method": {"name": method},
            }
        )
    )
    torch.manual_seed(seed)
    model = task.build_model()
    model(torch.randn(4, 1, SIZE, SIZE))  # in training mode: moves the statistics of batch normalisation
    seen_K = torch.tensor([True, False, True, False, False])
    mean_KD = torch.where(seen_K[:, None], 0.1 * torch.randn(5, 16), 0.0)
    return Trained(task, model, draw_frame(5, 16, seed), ClassMemory(mean_KD=mean_KD, seen_K=seen_K))


def exported(folder: Path, run: Trained) -> Path:
    """The folder that holds the two files."""
    export(folder, run.model, run.task, run.frame, run.memory, run.task.run)
    return folder / FOLDER


@pytest.mark.parametrize("method", registry.SHIPPED)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_round_trip_gives_the_same_bits(tmp_path: Path, method: str, norm: str) -> None:
    run = trained(method, norm=norm)
    inputs = torch.randn(7, 1, SIZE, SIZE)
    loaded = load(exported(tmp_path, run))
    with torch.no_grad():
        scores_BC = loaded(inputs)
    assert torch.equal(scores_BC, run.scores(inputs))
    assert loaded.class_names == tuple(CLASSES)
    assert loaded.run == run.task.run
    assert not loaded.training


def test_run_folder_and_model_folder_are_the_same_model(tmp_path: Path) -> None:
    folder = exported(tmp_path, trained())
    state, other = load(tmp_path).state_dict(), load(str(folder)).state_dict()
    assert all(torch.equal(state[key], other[key]) for key in state | other)


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST])
def test_files_of_two_runs_are_not_mixed(tmp_path: Path, name: str) -> None:
    first, second = exported(tmp_path / "a", trained(seed=1)), exported(tmp_path / "b", trained(seed=2))
    (first / name).replace(second / name)
    with pytest.raises(DataError, match="sha256"):
        load(second)


def test_frame_must_be_the_one_that_the_manifest_names(tmp_path: Path) -> None:
    manifest = exported(tmp_path, trained()) / MANIFEST
    manifest.write_text(manifest.read_text().replace(trained().frame.digest, draw_frame(5, 16, 9).digest))
    with pytest.raises(DataError, match="sha256"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"format": 2}, DataError, "newer version"),
        ({"task_version": 99}, DataError, "version 99 of task 'image'"),
        ({"run": {"task": {"name": "speech"}}}, ConfigError, "'speech' is not installed"),
    ],
)
def test_models_of_another_kind_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    manifest = exported(tmp_path, trained()) / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(error, match=words):
        load(tmp_path)


def test_the_error_about_a_missing_model_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=MANIFEST):
        load(tmp_path)


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", _no_power)
        with pytest.raises(OSError, match="no power"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "nothing half-written stays behind"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def _no_power(descriptor: int) -> None:
    raise OSError("no power")


@given(st.binary(max_size=200), st.booleans())
def test_damaged_weights_and_manifests_are_data_errors(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, is_prefix: bool
) -> None:
    """Also if the sha256 was adapted to the damaged weights."""
    folder = exported(tmp_path_factory.mktemp("run"), trained())
    weights, manifest = folder / WEIGHTS, folder / MANIFEST
    whole, said = weights.read_bytes(), manifest.read_text()
    damaged = junk if is_prefix else whole[: -1 - len(junk)]
    weights.write_bytes(damaged)
    old, new = (hashlib.sha256(data).hexdigest() for data in (whole, damaged))
    manifest.write_text(said.replace(old, new))
    with pytest.raises(DataError):
        load(folder)
    manifest.write_bytes(junk)
    with pytest.raises(DataError):
        load(folder)
