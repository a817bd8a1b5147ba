"""The state that a client keeps between rounds: what it may be called, and how much of it there may be on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict

from fednc.client.training.round_state import KEPT_RUNS, Past, folder_of


@pytest.mark.parametrize("kind", ["", "../elsewhere", "a/b", ".hidden", "a.1", "a" * 65])
def test_a_kind_that_cannot_be_a_files_name_is_refused_with_a_folder_and_without(
    tmp_path: Path, kind: str
) -> None:
    for folder in (None, tmp_path / "state"):
        state = RecordDict()
        with pytest.raises(ValueError, match="letters, digits"):
            Past(state, 1, folder).write(kind, {"a": torch.ones(1)})
        assert not state
    assert not list(tmp_path.rglob("*"))


def test_a_new_run_deletes_the_oldest_state_of_the_same_client_only(tmp_path: Path) -> None:
    others = [folder_of(tmp_path, 1, "bea"), tmp_path / "notes"]
    for place in others:
        place.mkdir()
    folders = [folder_of(tmp_path, run - 5, "anna") for run in range(KEPT_RUNS + 3)]
    for age, folder in enumerate(folders):
        for number in (1, 2, 3):
            Past(RecordDict(), number, folder).write("kept", {"a": torch.full((2,), float(number))})
        os.utime(folder, (age, age))
    assert sorted(tmp_path.iterdir()) == sorted([*others, *folders[3:]])
    for folder in folders[3:]:
        assert torch.equal(Past(RecordDict(), 4, folder).read("kept")["a"], torch.full((2,), 3.0))
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
