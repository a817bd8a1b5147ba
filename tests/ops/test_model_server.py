"""The registry of models on a real MLflow server over HTTP: as on a folder, and nothing half-registered after a
kill.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("mlflow", reason="pip install 'fednc[ops]'")

import fednc
from fednc.common.errors import AddressError
from fednc.ops.registry.lineage import lineage_of
from fednc.ops.registry.registration import register
from fednc.ops.registry.registry import ModelRegistry
from fednc.ops.registry.store import load_mlflow
from support.command_processes import ends
from support.command_processes import fednc as command
from support.registered_runs import finished_run, killed_at

load_mlflow()  # before a test forks


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an MLflow server that keeps its files itself."""
    folder = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", f"sqlite:///{folder / 'store.db'}"]
    arguments += ["--artifacts-destination", str(folder / "files")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *arguments], stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()  # its workers end with it
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 200
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.2)


def test_versions_on_a_server_are_those_of_a_folder(server: str, tmp_path: Path) -> None:
    run = finished_run(tmp_path, "run")
    assert killed_at("registry.files:1:kill", lambda: register(ModelRegistry(server), run))
    assert not ModelRegistry(server).rows(), "half a version is none"
    register(ModelRegistry(str(tmp_path / "folder")), run, alias="champion")
    code, said = ends(
        command("models", "register", run, "--store", server, "--alias", "champion", cwd=tmp_path), 200
    )
    assert code == 0, said
    assert "View run" not in said
    far, near = (ModelRegistry(where).resolve("toy@champion") for where in (server, str(tmp_path / "folder")))
    assert far.digest == near.digest
    theirs = fednc.load(far.folder).state_dict()
    assert all(theirs[key].equal(value) for key, value in fednc.load(run).state_dict().items())
    assert ModelRegistry(server).verify("toy/1") == []
    lines = [lineage_of(ModelRegistry(where), "toy/1") for where in (server, str(tmp_path / "folder"))]
    assert lines[0]["digest"] == lines[1]["digest"]
    assert lines[0]["aliases"] == lines[1]["aliases"] == ["champion"]


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(AddressError, match=f"127.0.0.1:{port}: it cannot be used.*Check the"):
        ModelRegistry(f"http://127.0.0.1:{port}").resolve("toy@champion")
