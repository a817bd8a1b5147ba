"""Measures `fednc serve` and a bare FastAPI handler in turn: the same model, the same example, one process each.

Called by `cli/bench.py`. Starts `fednc serve` as a user does.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fednc.bench.probe import Child
from fednc.bench.serving.load import Measured, grpc_load, http_load
from fednc.common.config.run import read_run_file
from fednc.common.errors import RunFailedError
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.model_export import export, load
from fednc.common.tasks import discovery
from fednc.protos import open_inference_pb2 as pb

Row = dict[str, Any]
Load = Callable[[float], Measured]
_WARM_S = 1.0
_DIGITS = Path(__file__).parents[1] / "demo.toml"


@dataclass(frozen=True)
class ServeLoad:
    """What to measure: callers at once, seconds of each measurement, and how often each is repeated."""

    callers: int = 32
    seconds: float = 5.0
    repeats: int = 5
    options: tuple[str, ...] = ()  # more options of `fednc serve`


def measure(folder: Path | None, wanted: ServeLoad, say: Callable[[str], None]) -> list[Row]:
    """One row for the bare handler and one for each way to ask `fednc serve`. Raises RunFailedError.

    Args:
        folder: of a finished run; None: a model of the demo, not trained, which costs the same.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _untrained(folder)
        bare = stack.enter_context(_bare(folder))
        ports = stack.enter_context(_served(folder, wanted.options))
        loads = _loads(folder, bare, ports, wanted.callers)
        found: dict[str, list[Measured]] = {name: [] for name in loads}
        for each in loads.values():
            each(_WARM_S)
        for repeat in range(wanted.repeats):  # in turn, so that a busy moment of the machine hits all of them
            for name, each in loads.items():
                found[name].append(each(wanted.seconds))
            say(f"{repeat + 1}: " + ", ".join(f"{name} {found[name][-1].per_s:,.0f}/s" for name in loads))
    return [_row(name, found, wanted) for name in found]


def _row(name: str, found: dict[str, list[Measured]], wanted: ServeLoad) -> Row:
    ratios = [ours.per_s / bare.per_s for ours, bare in zip(found[name], found["bare"], strict=True)]
    return {
        "server": name,
        "callers": wanted.callers,
        "requests_per_s": statistics.median(each.per_s for each in found[name]),
        "to_bare": statistics.median(ratios),
        "p50_ms": statistics.median(each.quantile_ms(0.5) for each in found[name]),
        "p99_ms": statistics.median(each.quantile_ms(0.99) for each in found[name]),
        "requests": sum(len(each.each_s) for each in found[name]),
        "ratios": [round(each, 3) for each in ratios],
    }


def _untrained(folder: Path) -> None:
    run = read_run_file(_DIGITS)
    task = discovery.get(run)
    torch.manual_seed(run.seed)
    frame = task.frame(run.seed)
    seen_K = torch.ones(task.label_space, dtype=torch.bool)
    memory = ClassMemory(mean_KD=frame.etf_KD.clone(), seen_K=seen_K, metric_DD=torch.eye(task.memory_dim))
    export(folder, task.build_model(), task, frame, memory, run)


def _loads(folder: Path, bare: int, ports: tuple[int, int], callers: int) -> dict[str, Load]:
    """How each server is asked about the same example."""
    model = load(folder)
    form = next(each for each in model.task.request_forms() if each.name == "input")
    assert form.shape is not None, "the model must say what shape its inputs have"
    torch.manual_seed(0)
    inputs = torch.randn(1, *form.shape)
    with torch.inference_mode():
        label = model.class_names[int(model(inputs).argmax())]
    question = {"shape": [1, *form.shape], "data": [round(each, 4) for each in inputs.flatten().tolist()]}
    asked = {"name": "input", "datatype": "FP32", **question}
    text = json.dumps({"inputs": [asked]}).encode()
    raw = inputs.numpy().astype("<f4").tobytes()
    asked_raw = {**asked, "parameters": {"binary_data_size": len(raw)}}
    del asked_raw["data"]
    head = json.dumps({"inputs": [asked_raw], "parameters": {"binary_data_output": True}}).encode()
    message = pb.ModelInferRequest(model_name="digits", raw_input_contents=[raw])
    message.inputs.add(name="input", datatype="FP32", shape=question["shape"])
    path, json_kind = "/v2/models/digits/infer", {"Content-Type": "application/json"}
    http, over_grpc = ports
    return {
        "bare": lambda s: http_load(
            bare, "/infer", json.dumps(question).encode(), json_kind, callers, s, _has(f'"label":"{label}"')
        ),
        "REST, JSON": lambda s: http_load(http, path, text, json_kind, callers, s, _has(f'"data":["{label}"]')),
        "REST, binary": lambda s: http_load(
            http,
            path,
            head + raw,
            {"Inference-Header-Content-Length": str(len(head))},
            callers,
            s,
            lambda answer: f"\x01\x00\x00\x00{label}".encode() in answer,
        ),
        "gRPC": lambda s: grpc_load(
            over_grpc,
            message.SerializeToString(),
            callers,
            s,
            lambda answer: f"\x01\x00\x00\x00{label}".encode() in answer,
        ),
    }


def _has(text: str) -> Callable[[bytes], bool]:
    return lambda answer: text.encode() in answer


@contextlib.contextmanager
def _bare(folder: Path) -> Iterator[int]:
    with Child("fednc.bench.serving.bare_handler", {"folder": str(folder)}) as child:
        yield child.hear()["port"]
        child.stop()


@contextlib.contextmanager
def _served(folder: Path, options: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """The ports of `fednc serve`."""
    given = ["--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--device", "cpu", "--threads", "1", *options]
    command = [sys.executable, "-m", "fednc.cli.start", "serve", f"digits={folder}", *given]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            found = re.fullmatch(r"listening: http .*:(\d+), grpc .*:(\d+)\n", line)
            if found:
                yield int(found[1]), int(found[2])
                break
        else:
            raise RunFailedError(f"fednc serve ended with code {process.wait()} before it listened")
    finally:
        process.terminate()
        process.communicate()
