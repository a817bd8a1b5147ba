"""States of runs as a console meets them: a server's status with many clients, and run folders with long
histories.

The server here answers only an operator's calls, so that three hundred clients cost nothing.
"""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from safetensors.numpy import save_file

from fednc.common.learning.frame import draw_frame
from fednc.protos import operator_pb2 as pb
from fednc.protos import operator_pb2_grpc as rpc

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
RUN_ID = "hospital-20260301-080000"


def status_with(clients: int, *, completed: int = 40, total: int = 100, names: Sequence[str] = ()) -> pb.RunStatus:
    """A run in its middle; some clients are busy, some have problems."""
    draw = random.Random(clients)
    names = names or [f"site-{k:03d}" for k in range(clients)]
    nodes = [_node(name, k, draw) for k, name in enumerate(names)]
    status = pb.RunStatus(
        run_id=RUN_ID,
        method="fednc",
        round=completed + 1,
        rounds=total,
        phase=pb.RunStatus.ROUND,
        nodes=nodes,
        missing=[node.name for node in nodes if node.work],
        completed=completed,
        loss=0.31,
        round_s=12.4,
        fold_s=0.21,
        bytes_up=sum(node.bytes_up for node in nodes),
        bytes_down=sum(node.bytes_down for node in nodes),
        elapsed_s=560.0,
        dropped=["left-over"] if clients > 10 else [],
    )
    status.primary.CopyFrom(pb.MetricValue(name="accuracy", value=0.871, unit="%"))
    status.spread.CopyFrom(pb.Spread(clients=clients, min=0.6, q1=0.82, median=0.87, q3=0.91, max=0.99))
    return status


def _node(name: str, k: int, draw: random.Random) -> pb.NodeStatus:
    is_bad, is_busy = k % 41 == 7, k % 3 == 0
    node = pb.NodeStatus(
        name=name,
        state="lost" if is_bad else "unfit" if k % 53 == 11 else "paused" if k % 37 == 5 else "ready",
        problem="the data folder is gone" if k % 53 == 11 else "",
        last_seen_s=draw.uniform(60, 900) if is_bad else draw.uniform(0, 2),
        bytes_up=draw.randrange(10**6, 10**8),
        bytes_down=draw.randrange(10**6, 10**8),
        examples=draw.randrange(80, 4000),
        held_out=draw.randrange(8, 400),
        device="cuda:0" if k % 2 else "cpu",
    )
    node.primary.CopyFrom(pb.MetricValue(name="accuracy", value=min(0.99, draw.gauss(0.87, 0.06)), unit="%"))
    if is_busy and not is_bad:
        node.work, node.step, node.steps, node.examples_per_s = (
            "train",
            draw.randrange(1, 60),
            60,
            draw.uniform(90, 2000),
        )
    return node


@dataclass
class FakeServer(rpc.OperatorServicer):
    """Answers operators with one status, and remembers their commands."""

    status: pb.RunStatus
    commands: list[pb.ControlRequest] = field(default_factory=list)
    watches: int = 0

    async def Status(self, request: Any, context: Any) -> pb.RunStatus:
        return self.status

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[pb.RunStatus]:
        import asyncio

        self.watches += 1
        while True:
            yield self.status
            await asyncio.sleep(0.2)

    async def Control(self, request: pb.ControlRequest, context: Any) -> pb.RunStatus:
        self.commands.append(request)
        return self.status


@asynccontextmanager
async def operator_port(fake: FakeServer, port: int = 0) -> AsyncIterator[str]:
    """Serve it; gives the address."""
    server = grpc.aio.server()
    rpc.add_OperatorServicer_to_server(fake, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def write_run(
    folder: Path,
    *,
    rounds: int = 40,
    clients: Sequence[str] = ("site-0", "site-1", "site-2"),
    classes: Sequence[str] = ("mug", "cup", "bowl", "plate"),
    total: int = 100,
    done: bool = False,
) -> Path:
    """A run folder with this many rounds, as a server leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(7)
    lines = [_line("start", "fednc on image", method="fednc", frame="f", config="c", metric=_METRIC)]
    lines += [
        _line("ready", f"{name} is ready", node=name, examples=9, class_counts=[], pid=1, device="cpu")
        for name in clients
    ]
    records = [_record(number, clients, classes, draw) for number in range(1, rounds + 1)]
    lines += [
        _line("round", f"round {one['round']}/{total}: accuracy {one['test']['accuracy']:.1%}", **one)
        for one in records
    ]
    if clients:
        lines.append(_line("lost", f"{clients[-1]} is lost", node=clients[-1]))
    if done:
        lines.append(_line("done", "run is done", folder=str(folder)))
        (folder / "rounds.json").write_text(json.dumps(records))
        (folder / "summary.json").write_text(
            json.dumps({"ended": "finished", "metric": _METRIC, "duration_s": 60.0})
        )
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    rows = [
        {
            "round": number,
            "client": name,
            "examples": 20.0,
            "accuracy": min(1.0, 0.5 + number / rounds / 2.2 - k / 900),
        }
        for number in range(1, rounds + 1)
        for k, name in enumerate(clients)
    ]
    (folder / "clients.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    if rounds and classes:
        write_checkpoint(folder, rounds, classes, records, total)
    return folder


_METRIC = {"name": "accuracy", "higher_is_better": True, "unit": "%"}


def _line(kind: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"at": 1_770_000_000.0, "elapsed_s": 1.0, "kind": kind, "text": text, **fields}


def _record(number: int, clients: Sequence[str], classes: Sequence[str], draw: random.Random) -> dict[str, Any]:
    value = 0.9 - 0.5 * math.exp(-number / 12) + draw.gauss(0, 0.004)
    by_class = {f"accuracy/{name}": min(1.0, value + 0.1 * math.sin(k)) for k, name in enumerate(classes)}
    return {
        "round": number,
        "seconds": 11 + draw.random() * 2,
        "replies": len(clients),
        "missing": [],
        "failures": {},
        "examples": 900,
        "loss": 2.0 * math.exp(-number / 15) + 0.2,
        "drift": 0.5 * math.exp(-number / 20),
        "pooled": {"accuracy": value - 0.01},
        "worst_client": {"accuracy": value - 0.2, "name": clients[0] if clients else ""},
        "spread": {
            "clients": len(clients),
            "min": value - 0.2,
            "q1": value - 0.05,
            "median": value,
            "q3": value + 0.04,
            "max": value + 0.08,
        },
        "test": {
            "accuracy": value,
            **by_class,
            "nc1": math.exp(-number / 20),
            "nc3_cos": 1 - 0.4 * math.exp(-number / 15),
        },
        "bytes_up": 10**6,
        "bytes_down": 2 * 10**6,
    }


def write_checkpoint(
    folder: Path, number: int, classes: Sequence[str], records: Sequence[dict[str, Any]] = (), total: int = 100
) -> None:
    """A checkpoint with a frame, and class means near its vertices."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    frame_KD = draw_frame(len(classes), max(16, len(classes)), 3).etf_KD
    noise_KD = torch.randn(frame_KD.shape, generator=torch.Generator().manual_seed(1))
    mean_KD = (frame_KD + noise_KD * 0.5 / math.sqrt(frame_KD.shape[1])) * 0.9
    tensors = {
        "frame.etf_KD": frame_KD.numpy(),
        "memory.mean_KD": mean_KD.numpy().astype(np.float32),
        "memory.seen_K": np.ones(len(classes), dtype=bool),
    }
    stem = folder / "checkpoints" / f"round-{number:06d}"
    save_file(tensors, stem.with_suffix(".safetensors"))
    config = {
        "method": {"name": "fednc"},
        "task": {"name": "image", "classes": list(classes)},
        "rounds": {"total": total},
    }
    head = {"format": 1, "round": number, "config_sha256": "c", "config": config, "tensors_sha256": "t"}
    stem.with_suffix(".json").write_text(json.dumps({**head, "history": list(records)}))


def write_search(path: Path, *, trials: int = 12, name: str = "digits-lr") -> str:
    """A storage with one search; gives its URL."""
    import optuna

    from fednc.ops.search import study as keys

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{path}"
    study = optuna.create_study(storage=url, study_name=name, directions=["maximize"])
    study.set_user_attr(keys.IDENTITY, "x")
    study.set_user_attr(keys.METRIC, "accuracy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is called experimental
        study.set_metric_names(["accuracy"])
    draw = random.Random(2)
    for k in range(trials):
        rate, is_pruned = 10 ** draw.uniform(-3, -0.5), k % 4 == 3
        top = 0.9 - abs(math.log10(rate) + 1.5) / 3
        curve = {str(r): top - 0.4 / (r + 1) for r in range(1, 2 if is_pruned else 7)}
        trial = optuna.trial.create_trial(
            params={"train.lr": rate, "method.name": "fednc"},
            distributions={
                "train.lr": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True),
                "method.name": optuna.distributions.CategoricalDistribution(["fednc", "fedavg"]),
            },
            value=None if is_pruned else curve["6"],
            state=optuna.trial.TrialState.PRUNED if is_pruned else optuna.trial.TrialState.COMPLETE,
            user_attrs={
                keys.SETTINGS: {"train.lr": rate, "method.name": "fednc"},
                keys.CURVE: curve,
                keys.REASON: "worse than the median" if is_pruned else "",
                keys.SECONDS: 3.1,
                keys.BYTES_UP: 10**6,
                **({keys.SUGGESTED: HOSTILE} if k == 0 else {}),
            },
        )
        study.add_trial(trial)
    return url
