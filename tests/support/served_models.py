"""Exported models with random weights, and `fednc serve` on them: in a thread of the test, or as a process."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fednc.common.address import Address
from fednc.common.config.run import parse_run
from fednc.common.errors import DataError
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.model_export import FOLDER, export
from fednc.common.tasks import discovery
from fednc.ops.serving.access import Door, door_of
from fednc.ops.serving.batching import BatchLimits
from fednc.ops.serving.models import ServingRules, WantedModel
from fednc.ops.serving.server import ServedAddresses, ServeSettings, serve
from fednc.ops.serving.sources import FolderSource, FoundModel, ModelSource
from support.command_processes import fednc
from support.threaded_server import ThreadedServer

CLASSES = ["ant", "bee", "cat"]
SIZE = 8
LOCAL = Address("127.0.0.1", 0)


def export_model(folder: Path, seed: int = 0, channels: int = 1) -> Path:
    """An image classifier with weights drawn from `seed`, as a finished run leaves it."""
    options = {"name": "image", "classes": CLASSES, "size": SIZE, "channels": channels, "width": 8}
    norm = {"mean": [0.4] * channels, "std": [0.3] * channels}
    run = parse_run({"name": f"run-{seed}", "task": {**options, **norm}, "frame": {"dim": 16}})
    task = discovery.get(run)
    torch.manual_seed(seed)
    model = task.build_model()
    frame = task.frame(seed)
    seen_K = torch.ones(3, dtype=torch.bool)
    memory = ClassMemory(mean_KD=frame.etf_KD.clone(), seen_K=seen_K, metric_DD=torch.eye(16))
    export(folder, model, task, frame, memory, run)
    return folder


@dataclass
class Aliases:
    """A registry in memory: what each reference means now, and how often it was asked."""

    versions: dict[str, FoundModel] = field(default_factory=dict)

    def move(self, reference: str, version: str, folder: Path, stale: str = "") -> None:
        """From now on `reference` means this version."""
        digest = FolderSource().find(str(folder)).digest
        self.versions[reference] = FoundModel(reference, version, digest, folder / FOLDER, stale)

    def find(self, reference: str) -> FoundModel:
        """See ModelSource."""
        if reference not in self.versions:
            raise DataError(f"{reference}: no such alias")
        return self.versions[reference]


@dataclass
class Answer:
    """An answer over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class RunningServer(ThreadedServer):
    """`fednc serve` in a thread of the test."""

    def __init__(
        self, source: ModelSource, *wanted: WantedModel, door: Door | None = None, **options: Any
    ) -> None:
        rules = ServingRules(
            device=torch.device("cpu"),
            limits=options.pop("limits", BatchLimits()),
            poll_s=options.pop("poll_s", 0.05),
            refuse_stale=options.pop("refuse_stale", False),
        )
        super().__init__()
        door = door or door_of("none", None, [LOCAL], insecure=False)
        self._settings = ServeSettings(
            models=wanted, rules=rules, door=door, http=LOCAL, grpc=LOCAL, probe=LOCAL, **options
        )
        self._source = source
        self.listening: ServedAddresses

    async def serve(self) -> None:
        await serve(self._settings, self._source, self._listens)

    def _listens(self, listening: ServedAddresses) -> None:
        self.listening = listening
        self.ready.set()

    @property
    def http(self) -> str:
        return str(self.listening.http)

    @property
    def grpc(self) -> str:
        return str(self.listening.grpc)

    def ask(self, path: str, body: Any = None, **headers: str) -> Answer:
        """GET, or POST if there is a body: bytes, or what becomes JSON."""
        return ask(f"http://{self.http}{path}", body, **headers)


def ask(url: str, body: Any = None, context: Any = None, **headers: str) -> Answer:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, sent)
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as found:
            return Answer(found.status, {k.lower(): v for k, v in found.headers.items()}, found.read())
    except urllib.error.HTTPError as e:
        return Answer(e.code, {k.lower(): v for k, v in e.headers.items()}, e.read())


def json_request(inputs_N: torch.Tensor, **more: Any) -> dict[str, Any]:
    """A request in JSON about preprocessed inputs."""
    data = inputs_N.flatten().tolist()
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(inputs_N.shape), "data": data}], **more}


@contextlib.contextmanager
def serve_process(
    *arguments: object, cwd: Path
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], list[str]], str]]:
    """`fednc serve` as a process: itself, the lines that it has written so far, and its HTTP address."""
    process = fednc("serve", *arguments, "--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", cwd=cwd)
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True)
    reader.start()
    try:
        give_up = time.monotonic() + 60
        while not (found := re.search(r"listening: http (\S+),", "".join(lines))):
            assert process.poll() is None, "".join(lines)
            assert time.monotonic() < give_up, "".join(lines)
            time.sleep(0.02)
        yield process, lambda: list(lines), found[1]
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stderr.close()
        assert process.stdout is not None
        process.stdout.close()
