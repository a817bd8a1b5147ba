"""Pipelines in real processes that are killed: at every step, in a round, with clients of their own; and
continued.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import psutil
import pytest

from fednc.ops.registry.lineage import lineage_of
from fednc.ops.registry.registry import ModelRegistry
from support.process_federation import Process, Zygote, wait_for
from support.small_pipelines import SmallPipeline

pytest.importorskip("mlflow")

POINTS = {
    "check": ("begin", "kept"),
    "statistics": ("did", "kept"),
    "train": ("kept",),
    "evaluate": ("kept",),
    "gate": ("begin",),
    "register": ("did", "kept"),
    "deploy": ("did", "kept"),
}
MODULES = (
    "fednc.cli.pipeline",
    "fednc.in_process",
    "fednc.ops.pipelines.runner",
    "sqlalchemy",
    "alembic",
)  # MLflow starts a thread


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("zygote") / "log", *MODULES)
    yield zygote
    zygote.close()


class Runs:
    """Starts the pipeline's command again and again."""

    def __init__(self, zygote: Zygote, pipeline: SmallPipeline) -> None:
        self._zygote, self.pipeline = zygote, pipeline
        self._path = pipeline.write()

    def start(self, faults: str = "", *options: str) -> Process:
        env = {"FEDNC_FAULT": faults, "FEDNC_FAULT_LOG": str(self.pipeline.folder / "faults.log")}
        args = ["pipeline", "run", str(self._path), "--no-wait", *options]
        return self._zygote.start(args, env, self.pipeline.folder / "pipeline.log", 0)

    def __call__(self, faults: str = "", *options: str) -> int:
        return self.start(faults, *options).wait()

    def log(self) -> str:
        return (self.pipeline.folder / "pipeline.log").read_text()[-3000:]


def outcome(pipeline: SmallPipeline) -> dict[str, Any]:
    """What a pipeline must have led to, however often it was killed."""
    registry = ModelRegistry(str(pipeline.folder / "models"))
    (run,) = pipeline.journal.place.glob("federated/*")
    lineage = lineage_of(registry, "toy@champion")
    return {
        "weights": sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest(),
        "versions": [row.version for row in registry.rows("toy")],
        "aliases": registry.aliases("toy"),
        "verdicts": [(one["who"], one["valid"]) for one in lineage["approvals"]],
        "moves": [(move["before"], move["after"]) for move in lineage["moves"]["champion"]],
        "runs": [(one.number, one.ended) for one in pipeline.journal.runs()],
        "over": {
            name: state in ("done", "cached") for name, state in pipeline.states().items() if state != "skipped"
        },
    }


def answer(pipeline: SmallPipeline) -> None:
    for waiting in pipeline.box.pending():
        pipeline.box.decide(waiting.request.digest, "approved", "mara")


def make(folder: Path, empty_store: Path) -> SmallPipeline:
    folder.mkdir()
    shutil.copytree(empty_store, folder / "models")
    return SmallPipeline(folder, gate={})


@pytest.mark.timeout(900)
def test_a_pipeline_that_is_killed_at_every_step_ends_like_one_that_was_not(
    zygote: Zygote, empty_store: Path, tmp_path: Path
) -> None:
    whole, killed = (Runs(zygote, make(tmp_path / name, empty_store)) for name in ("whole", "killed"))
    assert whole() == 1, whole.log()  # it waits for a person
    answer(whole.pipeline)
    assert whole() == 0, whole.log()
    # Each process is killed before its first step that is not kept yet, after it, or once its result is kept.
    for step, points in POINTS.items():
        for point in points:
            assert killed(f"pipeline.{point}:1:kill") == -signal.SIGKILL, (step, point, killed.log())
        if step == "gate":
            assert killed() == 1, killed.log()
            answer(killed.pipeline)
            assert killed("pipeline.kept:1:kill") == -signal.SIGKILL, killed.log()
    assert killed("pipeline.recorded:1:kill") == 0  # nothing was left to do
    assert outcome(killed.pipeline) == outcome(whole.pipeline)
    hit = {line.split()[1] for line in (killed.pipeline.folder / "faults.log").read_text().splitlines()}
    assert hit == {"pipeline.begin", "pipeline.did", "pipeline.kept"}


@pytest.mark.timeout(200)
def test_a_pipeline_that_is_killed_in_a_round_goes_on_with_the_next(
    zygote: Zygote, empty_store: Path, tmp_path: Path
) -> None:
    whole, killed = (Runs(zygote, make(tmp_path / name, empty_store)) for name in ("whole", "killed"))
    for runs in (whole, killed):
        del runs.pipeline.tables["gate"]
        runs.pipeline.run["rounds"]["total"] = 3
        runs.pipeline.write()
    assert whole() == 0, whole.log()
    assert killed("server.checkpoint.end:2:kill") == -signal.SIGKILL, killed.log()
    assert killed("file.half:9:kill,pipeline.recorded:1:kill") == -signal.SIGKILL
    assert killed() == 0, killed.log()
    assert outcome(killed.pipeline) == outcome(whole.pipeline)
    events = next(killed.pipeline.journal.place.glob("federated/*")) / "events.jsonl"
    found = [json.loads(line) for line in events.read_text().splitlines()]
    rounds = [event["round"] for event in found if event["kind"] == "round"]
    assert rounds == [
        1,
        3,
    ]  # none was done twice; the line of round 2 was lost with the process, its result was not


@pytest.mark.timeout(300)
def test_over_the_link_a_killed_pipeline_takes_its_clients_with_it_and_is_continued(
    zygote: Zygote, empty_store: Path, tmp_path: Path
) -> None:
    local, linked = (Runs(zygote, make(tmp_path / name, empty_store)) for name in ("local", "linked"))
    for runs in (local, linked):
        del runs.pipeline.tables["gate"]
        runs.pipeline.write()
    certs = authority(tmp_path / "pki")
    linked.pipeline.run["server"] = {"certs": str(certs / "server"), "auth": "mtls", "listen": "127.0.0.1:0"}
    linked.pipeline.tables["link"] = {"client_certs": str(certs / "nodes")}
    linked.pipeline.write()
    assert linked("server.checkpoint.end:1:kill", "--on", "link") == -signal.SIGKILL, linked.log()
    folder = next(linked.pipeline.journal.place.glob("federated/*"))
    wait_for(lambda: not clients_of(folder), "the end of the clients of a pipeline that was killed", 20)
    assert linked("", "--on", "link") == 0, linked.log()
    assert clients_of(folder) == []
    assert local() == 0, local.log()
    assert outcome(linked.pipeline)["weights"] == outcome(local.pipeline)["weights"]


def clients_of(folder: Path) -> list[int]:
    """Processes with the run's folder in their command line."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if "client" in words and any(str(folder) in word for word in words):
            found.append(process.info["pid"])
    return found


def authority(folder: Path) -> Path:
    """Certificates for the server and both clients, made as users make them."""
    fednc = [sys.executable, "-m", "fednc.cli.start", "certs"]
    commands = [["init", str(folder)], ["server", str(folder), "--host", "127.0.0.1"]]
    commands += [["node", str(folder), name] for name in ("anna", "bert")]
    for words in commands:
        done = subprocess.run([*fednc, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder
