"""One contract for every grid: the same run gives the same bits, whatever carries the messages.

A new grid joins by one line in `GRIDS`. The number of threads is fixed, because it changes the rounding of sums.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message

from fednc.client.app.flower_app import app as fednc_app
from fednc.common import seeds
from fednc.common.config.run import RunConfig
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Part, add_stats
from fednc.common.tasks.evaluation import evaluate
from fednc.common.tasks.metrics import Stats
from fednc.common.tasks.round_guide import guide_at
from fednc.common.wire import messages, records
from fednc.common.wire.failure_reasons import failure_of
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.event_log import EventLog
from support.contract_run import CLIENTS, VARIANTS, assert_same_bits, config, run_on_local
from support.runs_on_grids import App, over_the_link


def run_on_link(run: RunConfig, app: App, folder: Path) -> RunResult:
    return over_the_link(run, CLIENTS, app, folder)


GRIDS = {"local": run_on_local, "link": run_on_link}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_grid_gives_the_same_bits(variant: str, tmp_path: Path) -> None:
    run = config(**VARIANTS[variant])
    results = [on(run, fednc_app, tmp_path) for on in GRIDS.values()]
    for other in results[1:]:
        assert_same_bits(results[0], other)
    trained = results[0].state.model
    untrained = FederatedRun(run, EventLog()).state.model
    assert any(not torch.equal(trained[key], untrained[key]) for key in trained), "the run has trained nothing"


@pytest.mark.parametrize("grid", GRIDS)
def test_a_client_that_fails_is_named_and_the_round_goes_on(grid: str, tmp_path: Path) -> None:
    def fails_in_round_2(message: Message, context: Context) -> Message:
        meta = message.metadata
        if (context.node_config["name"], meta.group_id, meta.message_type) == ("bert", "2", "train"):
            raise OSError("the disk is full")
        return fednc_app(message, context)

    result = GRIDS[grid](config(rounds={"total": 3}), fails_in_round_2, tmp_path)
    first, second, third = result.history.rounds
    assert second.failures == {"bert": ": ".join(failure_of(OSError("the disk is full")))}
    assert (first.replies, second.replies, third.replies) == (3, 2, 3)
    assert first.failures == third.failures == {}
    assert second.examples < first.examples == third.examples


@pytest.mark.parametrize("grid", GRIDS)
def test_no_client_can_change_anothers_arrays(grid: str, tmp_path: Path) -> None:
    """Clients overwrite what they sent; in one process, what they received is read-only."""
    sent: dict[int, Message] = {}

    def scribbles(message: Message, context: Context) -> Message:
        if context.node_id in sent:
            for array in records.arrays_of(sent[context.node_id].content):
                array.data[:] = bytes(len(array.data))
        if grid == "local":
            assert all(memoryview(array.data).readonly for array in records.arrays_of(message.content))
        sent[context.node_id] = fednc_app(message, context)
        return sent[context.node_id]

    run = config(method={"name": "fedavg"})
    assert_same_bits(GRIDS[grid](run, scribbles, tmp_path), run_on_local(run, fednc_app, tmp_path))


@pytest.mark.parametrize("grid", GRIDS)
def test_federated_evaluation_equals_the_central_one(grid: str, tmp_path: Path) -> None:
    """The same statistics from the same batches, to the last bit."""
    run = config(rounds={"total": 1})
    result = GRIDS[grid](run, fednc_app, tmp_path)
    task, model = discovery.get(run), result.task.build_model()
    model.load_state_dict(result.state.model)
    guide = guide_at(task, result.frame.etf_KD, result.state.memory, 1)
    stats: Stats = {}
    for index, client in enumerate(CLIENTS):
        data = task.load_train(client.data, Part(index, len(CLIENTS)), run.split)
        _, held_out = data.hold_out(client.val_share, seeds.derive(run.seed, "hold-out", client.name))
        add_stats(stats, evaluate(task, model, held_out, guide, run.evaluate.batch))
    assert result.history.rounds[0].pooled == task.measure(stats)
    assert stats["examples"] > 100


@pytest.mark.parametrize(("codec", "share", "off"), [("bf16", 0.6, 0.004), ("int8", 0.35, 0.03)])
def test_a_codec_saves_bytes_and_hardly_changes_the_update(
    codec: str, share: float, off: float, tmp_path: Path
) -> None:
    configs = [config(rounds={"total": 1}, link={"codec": name}) for name in ("fp32", codec)]
    start = FederatedRun(configs[0], EventLog()).state.model
    plain, coded = (run_on_local(run, fednc_app, tmp_path).state.model for run in configs)
    moved = sum((plain[key] - start[key]).square().sum() for key in start).sqrt()
    apart = sum((plain[key] - coded[key]).square().sum() for key in start).sqrt()
    assert 0 < apart < off * moved
    whole, encoded = (uploaded(run, tmp_path) for run in configs)
    assert encoded < share * whole


def uploaded(run: RunConfig, folder: Path) -> int:
    """Bytes of all model records that clients sent."""
    total = 0

    def counting(message: Message, context: Context) -> Message:
        nonlocal total
        reply = fednc_app(message, context)
        model = reply.content.array_records.get(messages.MODEL, {})
        total += sum(len(array.data) for array in model.values())
        return reply

    run_on_local(run, counting, folder)
    return total
