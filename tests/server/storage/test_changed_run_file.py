"""A run that is resumed with another run file: more rounds and other waiting times, but never another model."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link.link import Link, LinkConfig
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError
from fednc.protos import federation_pb2 as pb
from fednc.server.main import Finished, run_server
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.changed_run_file import MAY_CHANGE, changes, check
from fednc.server.storage.checkpoint import Checkpoints
from fednc.server.storage.event_log import EventLog

NAMES = ("anna", "bert")


def run_of(**sections: dict[str, Any]) -> RunConfig:
    values: dict[str, Any] = {
        "seed": 3,
        "task": {"classes": list("0123456789"), "width": 8, "size": 8, "channels": 1},
        "frame": {"dim": 16},
        "rounds": {"total": 2, "min_clients": 2, "wait_s": 60, "rejoin_s": 0.2},
        "split": {"kind": "iid", "parts": 2},
        "server": {"listen": "127.0.0.1:0"},
    }
    for name, keys in sections.items():
        values[name] = {**values.get(name, {}), **keys}
    return parse_run(values)


async def serve_async(run: RunConfig, folder: Path) -> Finished:
    """The shipped server with two shipped clients that leave after the run."""
    clients: list[asyncio.Task[Any]] = []

    def listening(_: object, port: int) -> None:
        for index, name in enumerate(NAMES[: run.rounds.min_clients]):
            part = pb.Part(index=index, of=2)
            config = LinkConfig(server=f"127.0.0.1:{port}", name=name, once=True, part=part)
            host = AppHost(ClientConfig(name=name, data="digits", device="cpu"), app)
            clients.append(asyncio.create_task(Link(config, host).run()))

    folder.mkdir(exist_ok=True)
    try:
        return await run_server(run, folder, EventLog(folder / "events.jsonl"), on_listening=listening)
    finally:
        await asyncio.gather(*clients, return_exceptions=True)


def serve(run: RunConfig, folder: Path) -> Finished:
    return asyncio.run(serve_async(run, folder))


def test_a_finished_run_is_resumed_with_more_rounds_and_says_what_changed(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    serve(run_of(), folder)
    before = json.loads((folder / "rounds.json").read_text())
    more = run_of(rounds={"total": 4, "wait_s": 50, "min_clients": 1, "deadline_s": 300}, train={"lr": 0.02})
    finished = serve(more, folder)
    rounds = json.loads((folder / "rounds.json").read_text())
    assert [each["round"] for each in rounds] == [1, 2, 3, 4]
    assert rounds[:2] == before
    assert rounds[2]["changed"] == {
        "rounds.deadline_s": [600.0, 300.0],
        "rounds.min_clients": [2, 1],
        "rounds.total": [2, 4],
        "rounds.wait_s": [60.0, 50.0],
        "train.lr": [0.03, 0.02],
    }
    assert rounds[3]["changed"] == {}
    assert finished.summary["config_sha256"] == more.digest
    told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (change,) = [event for event in told if event["kind"] == "changed"]
    assert "rounds.total from 2 to 4" in change["text"]
    serve(more, folder)  # again with the same file, which changes nothing
    assert len([line for line in (folder / "events.jsonl").read_text().splitlines() if '"changed",' in line]) == 1


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"frame": {"dim": 32}}, "frame.dim (16 before, now 32)"),
        ({"train": {"batch": 32}}, "train.batch"),
        ({"method": {"name": "fedavg"}}, "method.name"),
        ({"rounds": {"total": 1}}, "completed 2 rounds"),
    ],
)
def test_keys_that_the_model_depends_on_may_not_change(
    sections: dict[str, Any], words: str, tmp_path: Path
) -> None:
    first = run_of()
    checkpoints = Checkpoints(tmp_path, keep=2)
    with LocalGrid(first, [ClientConfig(name=name, data="digits", device="cpu") for name in NAMES]) as grid:
        FederatedRun(first, EventLog()).execute(grid, Surroundings(checkpoints=checkpoints))
    other = run_of(**sections)
    with pytest.raises(ConfigError) as refused:
        checkpoints.latest(other.digest, other.decisive())
    assert words in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_with_sessions_the_rounds_before_them_may_not_change(tmp_path: Path) -> None:
    changed = {"rounds.total": [2, 3]}
    check(changed, tmp_path, completed=2, has_sessions=False)
    with pytest.raises(ConfigError, match="sessions"):
        check(changed, tmp_path, completed=2, has_sessions=True)


def test_every_key_that_may_change_exists() -> None:
    run = run_of(method={"server_step": "fedavgm"}).model_dump()
    for key in MAY_CHANGE:
        section, _, name = key.partition(".")
        assert name in run[section], key


def test_the_same_file_resumes_to_the_same_bits(tmp_path: Path) -> None:
    run, folder = run_of(rounds={"total": 3}), tmp_path / "r"
    whole = serve(run, folder)
    for path in (folder / "checkpoints").glob("round-000003*"):
        path.unlink()
    again = serve(run, folder)
    assert changes(run.decisive(), run.decisive()) == {}
    model, other = whole.result.state.model, again.result.state.model
    assert all(torch.equal(model[key], other[key]) for key in model)


def test_a_run_that_is_stopped_anywhere_ends_soon_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """The stop is mostly between two exchanges of a round; half a round must not count as one."""
    run, folder = run_of(rounds={"total": 6, "rejoin_s": 60}), tmp_path / "r"
    whole = serve(run_of(rounds={"total": 6, "rejoin_s": 60}), tmp_path / "whole")

    async def stop_after(checkpoint: Path, delay_s: float) -> None:
        task = asyncio.create_task(serve_async(run, folder))
        while not checkpoint.exists() and not task.done():
            await asyncio.sleep(0.001)
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    for completed, delay_s in enumerate((0.01, 0.04, 0.07, 0.1), start=1):
        started = time.monotonic()
        asyncio.run(stop_after(folder / "checkpoints" / f"round-{completed:06d}.json", delay_s))
        assert time.monotonic() - started < 40  # rejoin_s alone would be longer
    again = serve(run, folder)
    model, other = whole.result.state.model, again.result.state.model
    assert all(torch.equal(model[key], other[key]) for key in model)
    assert [r.round for r in again.result.history.rounds] == [1, 2, 3, 4, 5, 6]
