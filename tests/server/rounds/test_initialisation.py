"""NIO over a federation: equal to the central form, on any grid, without effect if it is off, and reported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.flower_app import app as fednc_app
from fednc.common import seeds
from fednc.common.config.run import parse_run
from fednc.common.initialise import messages
from fednc.common.initialise.nio import learn
from fednc.common.initialise.probe import batch_statistics
from fednc.common.initialise.windows import cut, windows
from fednc.common.wire import arrays
from fednc.common.wire.records import to_manifest
from fednc.protos import federation_pb2 as pb
from fednc.server.link.message_limits import InvalidError
from fednc.server.link.reply_schema import ReplySchema
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.initialisation import scaled
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.checkpoint import Checkpoints
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, ModelInitialised
from support.heard_events import of_kind
from support.initialisation_federation import (
    CLIENTS,
    INIT,
    NAMES,
    SPLIT,
    central_place,
    local,
    same_bits,
    small_run,
    told,
)
from support.runs_on_grids import over_the_link

# ---- equal to the central form


@pytest.mark.parametrize("objective", ["cosine", "cosine-norm", "cosine-square"])
def test_exact_equals_central_if_all_clients_have_the_same_data(objective: str) -> None:
    """Each client's batch is one of the sub-batches that one process would draw."""
    run = small_run({**INIT, "iters": 8, "objective": objective, "gain": 1.2, "gamma": 1.0})
    here, probe = central_place(run)

    def draws() -> Iterator[list[Any]]:
        for iteration in range(run.init.iters):
            streams = [seeds.generator(run.seed, "init", iteration, name) for name in NAMES]
            yield [next(here.data.train_batches(run.init.batch, stream)) for stream in streams]

    with batch_statistics(here.model):
        central = learn(probe, draws(), run.init)
    found = told(local(run))
    assert found["steps"] == central.steps
    assert min(central.steps.values()) > 0, "both branches are compared"
    learnt_P = torch.tensor([found["scales"][name] for name in probe.layout.scaled], dtype=torch.float64)
    torch.testing.assert_close(learnt_P, central.scale_P, rtol=0, atol=1e-5)
    assert float((central.scale_P - 1).abs().max()) > 0.05


def test_cheap_equals_central_if_all_clients_have_the_same_data() -> None:
    run = small_run({**INIT, "kind": "nio", "iters": 16})
    here, probe = central_place(run)

    def draws() -> Iterator[list[Any]]:
        for iteration in range(run.init.iters):
            batch = next(here.data.train_batches(run.init.batch, seeds.generator(run.seed, "init", iteration)))
            yield [cut(batch, rows) for rows in windows(16, run.init.sub_batches, run.init.overlap)]

    with batch_statistics(here.model):
        central = learn(probe, draws(), run.init)
    found = told(local(run))["scales"]
    learnt_P = torch.tensor([found[name] for name in probe.layout.scaled], dtype=torch.float64)
    torch.testing.assert_close(learnt_P, central.scale_P, rtol=0, atol=1e-5)
    assert float((central.scale_P - 1).abs().max()) > 0.05


# ---- without effect if it is off


def test_without_learnt_scales_nothing_changes() -> None:
    """Runs without [init], with `ordinary`, with a measurement only, and with scales that are not good enough."""
    plain = local(small_run(split=SPLIT))
    assert "init" not in plain.history.summary()
    said = local(small_run({"kind": "ordinary"}, split=SPLIT))
    assert said.run.digest == plain.run.digest
    measured = local(small_run({"report": True}, split=SPLIT))
    assert told(measured)["before"] == told(measured)["after"]
    refused = local(small_run({**INIT, "min_rise": 2.0}, split=SPLIT))
    assert not told(refused)["used"]
    assert told(refused)["after"] == told(refused)["before"] != told(refused)["learnt"]
    assert all(same_bits(plain, other) for other in (said, measured, refused))


def test_without_it_a_run_equals_one_from_before_it_existed() -> None:
    """Nothing is exchanged, and the digest is that of the commit before [init]."""
    run = parse_run(
        {
            "name": "before",
            "task": {"classes": [str(i) for i in range(10)], "size": 8, "channels": 1, "width": 8},
            "method": {"name": "fedavg"},
            "frame": {"dim": 16},
            "train": {"batch": 256},
            "split": SPLIT,
            "rounds": {"total": 1, "min_clients": 3},
        }
    )
    assert run.digest == "c2089c4c5d8abb66cb68b3acfcb9fd4a7163a8f419d17be2bf04f9c600ef7df3"
    asked = set[str]()

    def listening(message: Message, context: Context) -> Message:
        asked.add(message.metadata.message_type)
        return fednc_app(message, context)

    local(run, listening)
    assert asked
    assert not [kind for kind in asked if kind.startswith("query.init")]


def test_gain_and_scales_are_all_that_changes_the_first_weights() -> None:
    plain, loud = (FederatedRun(small_run({"gain": gain}), EventLog()) for gain in (1.0, 1.5))
    for key, value in plain.state.model.items():
        torch.testing.assert_close(loud.state.model[key], value * (1.5 if value.ndim > 1 else 1.0))
    run = small_run(INIT, split=SPLIT)
    events, first = EventLog(), list[dict[str, torch.Tensor]]()
    with LocalGrid(run, CLIENTS) as grid:
        prepared = FederatedRun(run, events)
        drawn, layout = prepared.state.model, prepared.layout
        events.listen(
            lambda event: first.append(prepared.state.model) if isinstance(event, ModelInitialised) else None
        )

        def keep(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "train":
                first.append(arrays.from_record(message.content["model"]))  # type: ignore[arg-type]
            return fednc_app(message, context)

    with LocalGrid(run, CLIENTS, keep) as grid:
        result = prepared.execute(grid)
    scales = told(result)["scales"]
    assert layout is not None
    assert told(result)["used"]
    expected = scaled(drawn, layout, torch.tensor([scales[name] for name in layout.scaled], dtype=torch.float64))
    assert all(torch.equal(first[-1][key], value) for key, value in expected.items())
    assert any(not torch.equal(drawn[key], value) for key, value in expected.items())


# ---- reports


def test_its_result_is_reported_measured_and_kept(tmp_path: Path) -> None:
    run, events, heard = small_run(INIT, rounds=2, split=SPLIT), EventLog(), list[Event]()
    events.listen(heard.append)
    with LocalGrid(run, CLIENTS) as grid:
        checkpoints = Checkpoints(tmp_path, keep=2)
        full = FederatedRun(run, events).execute(grid, Surroundings(checkpoints=checkpoints))
    found = told(full)
    assert found["after"]["cosine"] >= found["before"]["cosine"]
    assert found["before"]["clients"] == 3
    (event,) = of_kind(ModelInitialised, heard)
    assert f"cosine {found['before']['cosine']:+.3f}" in event.text
    assert event.after == found["after"]

    (tmp_path / "checkpoints" / "round-000002.json").unlink()
    kept = checkpoints.latest(run.digest)
    assert kept is not None
    asked = list[str]()

    def listening(message: Message, context: Context) -> Message:
        asked.append(message.metadata.message_type)
        return fednc_app(message, context)

    with LocalGrid(run, CLIENTS, listening) as grid:
        again = FederatedRun(run, EventLog())
        again.restore(kept)
        resumed = again.execute(grid)
    assert asked
    assert not [kind for kind in asked if kind.startswith("query.init")], "it is done once"
    assert told(resumed) == found
    assert same_bits(full, resumed)


# ---- over the link


@pytest.mark.parametrize("kind", ["nio", "nio-exact"])
def test_the_link_gives_the_bits_of_one_process(kind: str, tmp_path: Path) -> None:
    run = small_run({**INIT, "kind": kind}, split=SPLIT)
    linked, here = over_the_link(run, CLIENTS, fednc_app, tmp_path, agreed=True), local(run)
    assert {**told(linked), "seconds": 0} == {**told(here), "seconds": 0}
    assert same_bits(linked, here)


def test_the_link_refuses_answers_of_another_form() -> None:
    prepared = FederatedRun(small_run(INIT), EventLog())
    model, layout = prepared.state.model, prepared.layout
    assert layout is not None
    agreement = ReplySchema.of(prepared.task, model, initial=layout, is_first=True)

    def reply(weights: int) -> pb.Manifest:
        content = RecordDict({messages.INIT: arrays.to_record({messages.UNIT: torch.zeros(weights)})})
        content[messages.METRICS] = MetricRecord()
        return to_manifest(content, with_digests=False)

    agreement.check(messages.GRADIENT, reply(layout.weights))
    agreement.check(messages.GRADIENT, to_manifest(RecordDict({messages.INIT: ArrayRecord()}), with_digests=False))
    with pytest.raises(InvalidError):
        agreement.check(messages.GRADIENT, reply(layout.weights + 1))
    with pytest.raises(InvalidError):
        agreement.check(messages.SCALES, reply(layout.weights))
