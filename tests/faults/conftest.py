"""Shared by the fault tests: one fork server, one data set, the digest of a run in which nothing goes wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.process_federation import NAMES, Process, Stage, Zygote, environment, write_data


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name == "test_points.py")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("zygote") / "log")
    yield zygote
    zygote.close()


@pytest.fixture
def stage(zygote: Zygote, data: Path, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """A function that makes the stage of a run."""
    stages = []

    def make(place: str = "", **options: Any) -> Stage:
        (tmp_path / place).mkdir(exist_ok=True)
        stages.append(Stage(zygote, tmp_path / place, data, **options))
        return stages[-1]

    yield make
    for each in stages:
        each.end()


class Plain(Zygote):
    """Starts processes as users do."""

    def __init__(self) -> None:
        pass

    def start(self, args: list[str], env: dict[str, str], log: Path, skew_s: float) -> Process:
        command = [sys.executable, "-m", "fednc.cli.main", *args]
        process = subprocess.Popen(
            command, env=environment(**env), stdout=log.open("wb"), stderr=subprocess.STDOUT
        )
        return Process(process.pid, process.poll)


@dataclass(frozen=True)
class Reference:
    """The results of a run in which nothing goes wrong."""

    digest: str
    bytes_up: int


@pytest.fixture(scope="session")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A fault-free run with processes started as users start them."""
    stage = Stage(Plain(), tmp_path_factory.mktemp("reference"), data)
    try:
        processes = [stage.server(), *map(stage.client, NAMES)]
        assert [process.wait() for process in processes] == [0, 0, 0], stage.log("server")
        assert stage.faults() == []
        return Reference(stage.digest(), stage.bytes_up())
    finally:
        stage.end()
