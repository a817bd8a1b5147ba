"""Shared by the tests of pipelines: an empty store, because making one takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fednc.ops.registry.store import Store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "models"
    assert Store(str(folder)).experiment
    return folder
