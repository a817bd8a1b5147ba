"""`fednc client --dry-run`: everything up to the first round, without taking part.

Attends as a dry run, which the server does not count, reads the data, trains on two batches through the same app
as in a run, and leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import torch
from flwr.app import Message

from fednc.client.link.attendance import read_event
from fednc.client.link.channel import open_channel
from fednc.client.link.connection_errors import as_error
from fednc.client.link.http_proxy import proxy_on_the_way
from fednc.client.link.link import Host, LinkConfig
from fednc.client.link.work_hooks import CURRENT, Hooks
from fednc.common import flower_adapter, seeds
from fednc.common.config.run import RunConfig
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.tasks import discovery
from fednc.common.wire import arrays, messages
from fednc.common.wire.messages import Instruction
from fednc.protos import federation_pb2 as pb
from fednc.protos import federation_pb2_grpc as rpc

_BATCHES = 2  # the first is a warm-up


@dataclass(frozen=True, kw_only=True)
class DryRunResult:
    """What a client would bring to the run. `memory_bytes`: the peak on the GPU, else of this process."""

    run_id: str
    part: str
    device: str
    examples: int
    held_out: int
    class_counts: list[int]
    batch: int
    batch_s: float
    examples_per_s: float
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class _EnoughError(Exception):
    """Enough batches were timed."""


@dataclass(frozen=True)
class _Stopwatch(Hooks):
    """Notes when each batch begins, and ends the work after enough of them."""

    marks: list[float] = field(default_factory=list)

    def check(self) -> None:
        """See Hooks."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.monotonic())
        if len(self.marks) > _BATCHES:
            raise _EnoughError


async def dry_run(config: LinkConfig, host: Host) -> DryRunResult:
    """Connect, prepare, train on two batches, leave.

    Raises:
        AddressError: the server does not answer.
        RefusedError: it does not accept this client.
        FedncError: this client cannot take part.
    """
    welcome = await _welcome(config)
    declaration = await asyncio.to_thread(host.prepare, welcome)
    try:
        batch_s = await asyncio.to_thread(_time_a_batch, host, welcome)
    finally:
        host.leave()
    batch = min(RunConfig.model_validate_json(welcome.run_json).train.batch, declaration.examples)
    return DryRunResult(
        run_id=welcome.run_id,
        part=f"{welcome.part.index}/{welcome.part.of}" if welcome.HasField("part") else "",
        device=declaration.device,
        examples=declaration.examples,
        held_out=declaration.held_out,
        class_counts=list(declaration.class_counts),
        batch=batch,
        batch_s=batch_s,
        examples_per_s=batch / max(batch_s, 1e-9),
        memory_bytes=_peak_bytes(declaration.device),
    )


async def dry_run_foreign(config: LinkConfig, host: Host) -> str:
    """Connect and load a foreign app; returns the run's id. What the app does in a round is not tried.

    Raises: see `dry_run`.
    """
    welcome = await _welcome(config)
    try:
        await asyncio.to_thread(host.prepare, welcome)
    finally:
        host.leave()
    return welcome.run_id


async def _welcome(config: LinkConfig) -> pb.Welcome:
    try:
        opened = open_channel(config.server, config.credentials, config.liveness_s, direct=config.direct)
        async with opened as channel:
            call = rpc.FederationStub(channel).Attend(config.request(dry_run=True))
            welcome = (await read_event(call)).welcome
            call.cancel()
            return welcome
    except grpc.aio.AioRpcError as e:
        proxy = proxy_on_the_way(config.server, direct=config.direct)
        raise as_error(e, config.server, config.credentials, proxy) from e


def _time_a_batch(host: Host, welcome: pb.Welcome) -> float:
    watch, started = _Stopwatch(), time.monotonic()
    CURRENT.set(watch)  # only in this thread's copy of the context
    with contextlib.suppress(_EnoughError):
        host.work(_first_instruction(welcome))
    ended = [] if len(watch.marks) > _BATCHES else [time.monotonic()]  # there were no more batches
    *_, begin, end = [started, *watch.marks, *ended]
    return end - begin


def _first_instruction(welcome: pb.Welcome) -> Message:
    """What the server would send in round 1, with a model and a frame made here."""
    run = RunConfig.model_validate_json(welcome.run_json)
    task = discovery.get(run)
    model = task.new_model()
    shared = {key: model.state_dict()[key] for key in task.shared_keys(model)}
    frame = task.frame(seeds.derive(run.seed, "frame"))
    guide = messages.guide_record(frame, ClassMemory.empty(frame.vertices, task.memory_dim))
    content = messages.instruction_content(
        Instruction(run_json=welcome.run_json, server_round=1), arrays.to_record(shared), guide
    )
    return flower_adapter.instruction(
        content, run_id=welcome.run_id, dst=welcome.node_id, message_type=messages.TRAIN, group_id="1"
    )


def _peak_bytes(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux counts in KiB
