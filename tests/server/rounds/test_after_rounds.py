"""The exchanges after the last round: the temperature of the read-out, and the clients' own models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from torch import Tensor

from fednc.bench.local_grid import LocalGrid
from fednc.client.app import flower_app
from fednc.client.app.host import ClientConfig
from fednc.client.policy import objections
from fednc.client.policy.rules import Policy
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.learning.readout import tempered
from fednc.common.model_export import load
from fednc.common.tasks import temperature
from fednc.common.tasks.api import add_stats
from fednc.common.tasks.metrics import Stats
from fednc.common.wire import arrays
from fednc.common.wire.messages import (
    CALIBRATE,
    EVALUATE,
    EXAMPLES,
    METRICS,
    MODEL,
    PERSONAL,
    STATS,
    TRAIN,
    Instruction,
)
from fednc.protos import federation_pb2 as pb
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.result_files import summary_of, write_files
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.checkpoint import Checkpoints
from fednc.server.storage.client_metrics import ClientMetrics
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import CalibrationMissing, Event, ModelCalibrated
from support.clients_with_policy import open_but
from support.clinics import NAMES, clinics, clinics_run
from support.contract_run import assert_same_bits
from support.heard_events import of_kind
from support.prototype_tasks import LINE, installed, write_line
from support.runs_on_grids import App, in_one_process, over_the_link

TUNE = {"personal": {"train": "all", "epochs": 2}}


@pytest.fixture(autouse=True)
def prototypes() -> Iterator[None]:
    with installed():
        yield


class AskedGrid(LocalGrid):
    """Notes what is asked; `dies_before`: the kind of question with which the server is killed."""

    dies_before = ""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        messages = list(messages)
        kinds = sorted({message.metadata.message_type for message in messages})
        if self.dies_before in kinds:
            raise KeyboardInterrupt
        self.__dict__.setdefault("asked", []).extend(kinds)
        return super().send_and_receive(messages, timeout=timeout)


@dataclass
class Done:
    result: RunResult
    events: list[Event]
    asked: list[str]
    rejected: list[str] = field(default_factory=list)


def executed(
    run: RunConfig,
    clients: Sequence[ClientConfig],
    app: App = flower_app.app,
    metrics: ClientMetrics | None = None,
) -> Done:
    events, heard, rejected = EventLog(), list[Event](), list[str]()
    events.listen(heard.append)
    with AskedGrid(run, clients, app) as grid:
        around = Surroundings(
            name_of=grid.name_of,
            reject=lambda node, _: rejected.append(grid.name_of(node)),
            client_metrics=metrics or ClientMetrics(),
        )
        result = FederatedRun(run, events).execute(grid, around)
        return Done(result, heard, grid.__dict__["asked"], rejected)


def answering(kind: str, who: str, change: Callable[[RecordDict], None]) -> App:
    """Clients, of which one answers one kind of question in another way."""

    def app(message: Message, context: Context) -> Message:
        reply = flower_app.app(message, context)
        if message.metadata.message_type == kind and context.node_config["name"] == who:
            change(reply.content)
        return reply

    return app


def failing(*kinds: str, who: str = "carl") -> App:
    """A client of an earlier version does not know these questions."""

    def app(message: Message, context: Context) -> Message:
        if message.metadata.message_type in kinds and context.node_config["name"] == who:
            raise ValueError("unknown query")
        return flower_app.app(message, context)

    return app


# ---- temperature ---------------------------------------------------------------------------------------------


def test_it_is_fitted_on_what_all_clients_hold_out_and_changes_no_model(tmp_path: Path) -> None:
    run, clients, sums = clinics_run(tmp_path), clinics(tmp_path), list[Stats]()
    answer = answering(CALIBRATE, "bert", lambda content: sums.append(arrays.from_record(content[STATS])))
    done = executed(run, clients, answer)
    off = clinics_run(tmp_path, evaluate={"test": run.evaluate.test, "temperature": False})
    plain = executed(off, clients)
    assert (CALIBRATE in done.asked, CALIBRATE in plain.asked) == (True, False)
    assert done.asked.index(CALIBRATE) > max(i for i, kind in enumerate(done.asked) if kind == EVALUATE)
    assert_same_bits(done.result, plain.result)
    assert plain.result.after.temperature == 1
    found = done.result.after
    assert found.calibration["held_out_examples"] == 40 + 30 + 20
    assert int(sums[0][temperature.ROWS]) == 30
    assert of_kind(ModelCalibrated, done.events)[0].temperature == found.temperature
    before, after = found.calibration["test"]["before"], found.calibration["test"]["after"]
    assert found.calibration["held_out_loss"]["after"] <= found.calibration["held_out_loss"]["before"]
    assert before["examples"] == after["examples"] == 150


def test_the_total_is_that_of_all_held_out_rows(tmp_path: Path) -> None:
    run, clients = clinics_run(tmp_path), clinics(tmp_path)
    total = temperature.no_losses()

    def app(message: Message, context: Context) -> Message:
        reply = flower_app.app(message, context)
        if message.metadata.message_type == CALIBRATE:
            add_stats(total, arrays.from_record(reply.content[STATS]))
        return reply

    assert executed(run, clients, app).result.after.temperature == temperature.fitted(total)


def test_order_and_link_do_not_matter(tmp_path: Path) -> None:
    run, clients = clinics_run(tmp_path, **TUNE), clinics(tmp_path)
    first = in_one_process(run, clients, flower_app.app)
    for other in (
        in_one_process(run, clients[::-1], flower_app.app),
        over_the_link(run, clients, flower_app.app, tmp_path, agreed=True),
    ):
        assert_same_bits(first, other)
        assert other.after.temperature == first.after.temperature != 1
        assert other.after.personal["pooled"] == first.after.personal["pooled"]


def test_the_exported_model_uses_it(tmp_path: Path) -> None:
    run = clinics_run(tmp_path)
    result = executed(run, clinics(tmp_path)).result
    files = {"with": result, "without": replace(result, after=type(result.after)())}
    for name, one in files.items():
        (tmp_path / name).mkdir()
        write_files(tmp_path / name, one, summary_of(name, one))
    model, plain = load(tmp_path / "with"), load(tmp_path / "without")
    manifests = [json.loads((tmp_path / name / "model" / "model.json").read_text()) for name in files]
    assert manifests[0]["temperature"] == model.temperature == result.after.temperature
    assert "temperature" not in manifests[1], "earlier versions can read it"
    data = model.task.load_test(run.evaluate.test)
    with torch.no_grad():
        (inputs, _), *_ = data.eval_batches(200)
        assert torch.equal(model(inputs), tempered(plain(inputs), model.temperature))
    summary = json.loads((tmp_path / "with" / "summary.json").read_text())
    assert summary["calibration"]["temperature"] == model.temperature


def test_without_held_out_examples_it_says_so(tmp_path: Path) -> None:
    done = executed(clinics_run(tmp_path), clinics(tmp_path, val_share=0.0))
    assert CALIBRATE not in done.asked
    assert done.result.after.temperature == 1
    assert "no client holds examples out" in of_kind(CalibrationMissing, done.events)[0].text
    assert done.result.after.calibration["test"]["before"]["loss"] > 0


def test_a_task_without_classes_is_not_asked(tmp_path: Path) -> None:
    from fednc.common.config.run import parse_run

    clients = [ClientConfig(name=n, data=write_line(tmp_path / f"{n}.npz", 1), device="cpu") for n in "ab"]
    done = executed(parse_run({**LINE, **TUNE}), clients)
    assert CALIBRATE not in done.asked
    assert set(done.result.after.personal["pooled"]) == {"before", "after"}
    with pytest.raises(ConfigError, match="which layers are its head"):
        FederatedRun(parse_run({**LINE, "personal": {"train": "head"}}), EventLog())


@pytest.mark.parametrize("projection", ["fitted", "drawn"])
def test_a_head_that_the_run_does_not_train_is_not_fine_tuned_either(projection: str, tmp_path: Path) -> None:
    method = {"name": "fednc", "memory_space": "backbone", "projection": projection}
    run = clinics_run(tmp_path, method=method, personal={"train": "head"})
    with pytest.raises(ConfigError, match="trains none of these layers"):
        FederatedRun(run, EventLog())


def test_a_client_that_does_not_answer_costs_nothing(tmp_path: Path) -> None:
    run, clients = clinics_run(tmp_path, **TUNE), clinics(tmp_path)
    done = executed(run, clients, failing(CALIBRATE, PERSONAL))
    assert_same_bits(done.result, executed(run, clients).result)
    assert done.result.after.calibration["clients"] == done.result.after.personal["clients"] == 2
    assert done.rejected == []
    nobody = executed(run, clients[:2], failing(CALIBRATE, who="anna"))
    assert nobody.result.after.calibration["clients"] == 1


def with_stats(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[RecordDict], None]:
    def changed(content: RecordDict) -> None:
        content[STATS] = arrays.to_record(change(arrays.from_record(content[STATS])))

    return changed


LIES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "no such name": lambda sums: {**sums, "more": next(iter(sums.values()))},
    "more examples than announced": lambda sums: {name: value * 3 for name, value in sums.items()},
    "too large": lambda sums: {name: value + 2**40 for name, value in sums.items()},
}


@pytest.mark.parametrize("kind", [CALIBRATE, PERSONAL])
def test_hostile_answers_are_refused_and_the_others_count(kind: str, tmp_path: Path) -> None:
    run, clients = clinics_run(tmp_path, **TUNE), clinics(tmp_path)
    honest = executed(run, clients, failing(CALIBRATE, PERSONAL))
    for lie in LIES.values():
        done = executed(run, clients, answering(kind, "carl", with_stats(lie)))
        assert done.rejected == ["carl"]
        if kind == CALIBRATE:
            assert done.result.after.temperature == honest.result.after.temperature
        else:
            assert done.result.after.personal["clients"] == 2
            assert set(done.result.after.personal["by_client"]) == {"anna", "bert"}


def test_values_that_are_not_finite_are_left_out_too(tmp_path: Path) -> None:
    run, clients = clinics_run(tmp_path), clinics(tmp_path)
    spoilt = with_stats(lambda sums: {**sums, temperature.LOSS: sums[temperature.LOSS] * math.nan})
    done = executed(run, clients, answering(CALIBRATE, "carl", spoilt))
    assert done.result.after.temperature == executed(run, clients, failing(CALIBRATE)).result.after.temperature


# ---- personal models -----------------------------------------------------------------------------------------


def test_a_client_keeps_its_model_and_sends_only_statistics(tmp_path: Path) -> None:
    state = tmp_path / "state"
    run, clients = clinics_run(tmp_path, personal={"train": "head", "epochs": 3}), clinics(tmp_path)
    clients[0] = replace(clients[0], state=str(state))
    sent = list[RecordDict]()
    done = executed(run, clients, answering(PERSONAL, "anna", lambda content: sent.append(content)))
    assert set(sent[0]) == {STATS, METRICS}
    ways = ("before", "blended", "after")
    zeros = done.result.task.no_statistics()
    assert set(sent[0][STATS]) == {f"{way}/{name}" for way in ways for name in zeros}
    found = done.result.after.personal
    assert tuple(found["pooled"]) == ways
    assert set(found["by_client"]) == set(NAMES)
    assert found["pooled"]["after"]["examples"] == 90
    assert found["spread"]["after"]["clients"] == 3
    (folder,) = state.glob("*/personal")
    own = load(folder)
    assert own.temperature == done.result.after.temperature
    shared, mine = done.result.state.model, own.model.state_dict()
    for key, value in shared.items():
        assert torch.equal(mine[key], value) == (not key.startswith(("projection.", "head."))) or value.numel() < 2
    with torch.no_grad():
        (inputs, label_B), *_ = own.task.load_test(clients[0].data).eval_batches(200)
        assert float((own(inputs).argmax(dim=1) == label_B).float().mean()) > 0.5


def test_before_is_what_the_evaluation_said(tmp_path: Path) -> None:
    metrics = ClientMetrics()
    done = executed(clinics_run(tmp_path, **TUNE), clinics(tmp_path), metrics=metrics)
    for name in NAMES:
        before = done.result.after.personal["by_client"][name]["before"]
        assert before["accuracy"] == metrics.latest[name]["accuracy"]


@pytest.mark.parametrize("name", ["fedavg", "moon", "fedntd", "scaffold", "fedprox", "feddyn"])
def test_every_kind_of_method_can_be_adapted(name: str, tmp_path: Path) -> None:
    run = clinics_run(tmp_path, method={"name": name}, rounds={"total": 1}, **TUNE)
    assert executed(run, clinics(tmp_path)).result.after.personal["clients"] == 3


# ---- a server that is killed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_before", [CALIBRATE, PERSONAL])
def test_a_server_killed_after_the_last_round_asks_again(dies_before: str, tmp_path: Path) -> None:
    run, clients, metrics = clinics_run(tmp_path, **TUNE), clinics(tmp_path), ClientMetrics(tmp_path)
    whole = executed(run, clients).result
    checkpoints = Checkpoints(tmp_path, keep=2)
    with AskedGrid(run, clients) as grid:
        grid.dies_before = dies_before
        around = Surroundings(name_of=grid.name_of, checkpoints=checkpoints, client_metrics=metrics)
        with pytest.raises(KeyboardInterrupt):
            FederatedRun(run, EventLog()).execute(grid, around)
    again = FederatedRun(run, EventLog())
    kept = checkpoints.latest(run.digest)
    assert kept is not None
    again.restore(kept)
    later = ClientMetrics(tmp_path)
    later.go_back_to(kept.round)
    assert later.latest == metrics.latest
    with AskedGrid(run, clients) as grid:  # clients that start anew
        result = again.execute(grid, Surroundings(name_of=grid.name_of, checkpoints=checkpoints))
        assert TRAIN not in grid.__dict__["asked"]
    assert_same_bits(whole, result)
    assert result.after == whole.after


# ---- owners --------------------------------------------------------------------------------------------------


def test_owners_decide(tmp_path: Path) -> None:
    run = clinics_run(tmp_path, **TUNE)
    order = Instruction.under(run, 2)

    def codes(policy: Policy, kind: str) -> set[str]:
        return {code for code, _ in objections.to_instruction(policy, run, order, kind)}

    assert codes(Policy(), CALIBRATE) == set()
    assert codes(Policy(), PERSONAL) == {"personal"}
    assert codes(open_but(allow={"personal": True}), PERSONAL) == set()
    assert codes(open_but(allow={"evaluation": False, "personal": True}), PERSONAL) == {"evaluation"}
    assert codes(open_but(allow={"evaluation": False}), CALIBRATE) == {"evaluation"}
    assert "personal" in {code for code, _ in objections.to_coming(Policy(), run)}
    held = pb.Declaration(examples=30, held_out=5)
    for kind in (CALIBRATE, PERSONAL):
        few = RecordDict({METRICS: MetricRecord({EXAMPLES: 5})})
        found = objections.to_reply(open_but(floor={"held_out": 6}), kind, few, held, having=())
        assert [code for code, _ in found] == ["examples"]


def test_a_client_may_ask_not_to_be_listed(tmp_path: Path) -> None:
    run, clients, metrics = clinics_run(tmp_path, **TUNE), clinics(tmp_path), ClientMetrics(tmp_path)
    shy = replace(clients[0], unnamed=True)
    done = executed(run, [shy, *clients[1:]], metrics=metrics)
    assert_same_pool(done.result, executed(run, clients).result)
    assert set(metrics.latest) == set(done.result.after.personal["by_client"]) == {"bert", "carl"}
    assert '"anna"' not in (tmp_path / "clients.jsonl").read_text()
    assert all(record.worst_client["name"] != "anna" for record in done.result.history.rounds)
    assert done.result.history.rounds[-1].spread["clients"] == 3


def assert_same_pool(one: RunResult, other: RunResult) -> None:
    assert [r.pooled for r in one.history.rounds] == [r.pooled for r in other.history.rounds]
    assert one.after.personal["pooled"] == other.after.personal["pooled"]


def test_each_evaluated_round_is_on_file(tmp_path: Path) -> None:
    metrics = ClientMetrics(tmp_path)
    done = executed(clinics_run(tmp_path, rounds={"total": 3}), clinics(tmp_path), metrics=metrics)
    path = tmp_path / "clients.jsonl"
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["round"], row["client"]) for row in rows] == [(n, name) for n in (1, 2, 3) for name in NAMES]
    for record in done.result.history.rounds:
        mine = [row for row in rows if row["round"] == record.round]
        correct = sum(row["accuracy"] * row["examples"] for row in mine)
        assert correct / sum(row["examples"] for row in mine) == pytest.approx(record.pooled["accuracy"])
        assert record.spread["min"] == min(row["auroc"] for row in mine)
        assert record.spread["max"] == max(row["auroc"] for row in mine)
    with path.open("a") as file:
        file.write('{"round": 3, "cli')  # killed while it wrote
    again = ClientMetrics(tmp_path)
    again.go_back_to(2)
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [1, 1, 1, 2, 2, 2]
    assert set(again.latest) == set(NAMES)
    assert MODEL not in again.latest["anna"]
