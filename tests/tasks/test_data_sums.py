"""One exchange before round 1: additive sums of the data, and what is refused or withheld."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn
from typer.testing import CliRunner

from fednc.bench.local_grid import LocalGrid
from fednc.cli.main import app as command
from fednc.client.app import flower_app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.app.withheld_sums import NEVER
from fednc.client.policy import objections
from fednc.client.policy.ledger import Ledger
from fednc.client.policy.owner import Owner
from fednc.client.policy.rules import Policy
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError, DataError, FedncError, QuorumError
from fednc.common.model_export import load
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import TaskData
from fednc.common.tasks.metrics import Stats
from fednc.common.wire import arrays, messages, records
from fednc.common.wire.messages import DATA, DATA_SUMS, EXAMPLES, METRICS, MODEL, TRAIN, Instruction
from fednc.protos import federation_pb2 as pb
from fednc.server.link.message_limits import InvalidError
from fednc.server.link.reply_schema import ReplySchema
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.result_files import summary_of, write_files
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.checkpoint import Checkpoints
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event
from fednc.testing import TaskContract, promises
from support.clients_with_policy import open_but
from support.contract_run import assert_same_bits
from support.prototype_tasks import LINE, PROTOTYPES, SCALED, ScaledTask, installed, write_line, write_scaled
from support.runs_on_grids import App, in_one_process, over_the_link

ROWS = (200, 120, 61)
NAMES = ("anna", "bert", "carl")


@pytest.fixture(autouse=True)
def prototypes() -> Iterator[None]:
    with installed():
        yield


@pytest.fixture
def clients(tmp_path: Path) -> list[ClientConfig]:
    return [
        ClientConfig(name=name, data=write_scaled(tmp_path / f"{name}.npz", i, rows), device="cpu", val_share=0.0)
        for i, (name, rows) in enumerate(zip(NAMES, ROWS, strict=True))
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return parse_run({**SCALED, "evaluate": {"test": write_scaled(tmp_path / "test.npz", 1)}})


class AskedGrid(LocalGrid):
    """Notes what is asked; `dies_before`: the kind of question with which the server is killed, and the round."""

    dies_before: tuple[str, str] = ("", "")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        messages = list(messages)
        kinds = {(message.metadata.message_type, message.metadata.group_id) for message in messages}
        if self.dies_before in kinds:
            raise KeyboardInterrupt
        self.__dict__.setdefault("asked", []).extend(sorted(kind for kind, _ in kinds))
        return super().send_and_receive(messages, timeout=timeout)


def executed(
    run: RunConfig,
    clients: Sequence[ClientConfig],
    *,
    app: App = flower_app.app,
    rejected: list[str] | None = None,
) -> tuple[RunResult, list[Event], list[str]]:
    """(result, events, kinds of questions)."""
    events, heard = EventLog(), list[Event]()
    events.listen(heard.append)
    with AskedGrid(run, clients, app) as grid:
        around = Surroundings(
            name_of=grid.name_of,
            reject=lambda node, _: rejected.append(grid.name_of(node)) if rejected is not None else None,
        )
        result = FederatedRun(run, events).execute(grid, around)
        return result, heard, grid.__dict__["asked"]


def normalisation(result: RunResult) -> tuple[Tensor, Tensor]:
    return result.state.model["0.mean"], result.state.model["0.deviation"]


def rows_of(clients: Iterable[ClientConfig]) -> np.ndarray[Any, Any]:
    return np.concatenate([np.load(client.data.removeprefix("npz:"))["x"] for client in clients])


def told(events: Iterable[Event]) -> list[tuple[str, int, int]]:
    found = [event.fields() for event in events if event.kind in ("data-sums", "no-data-sums")]
    kinds = [event.kind for event in events if event.kind in ("data-sums", "no-data-sums")]
    return [(kind, one["answered"], one["withheld"]) for kind, one in zip(kinds, found, strict=True)]


# ---- what comes out ------------------------------------------------------------------------------------------


def test_mean_and_deviation_are_those_of_the_pooled_data(run: RunConfig, clients: list[ClientConfig]) -> None:
    result, events, asked = executed(run, clients)
    mean_F, deviation_F = normalisation(result)
    pooled = rows_of(clients)
    assert np.allclose(mean_F, pooled.mean(axis=0, dtype=np.float64), rtol=1e-6, atol=0)
    assert np.allclose(deviation_F, pooled.std(axis=0, dtype=np.float64), rtol=1e-6, atol=0)
    for column in range(3):  # and in exact arithmetic
        values = [Fraction(float(value)) for value in pooled[:, column]]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        assert mean_F[column].item() == pytest.approx(float(mean), rel=1e-6)
        assert deviation_F[column].item() == pytest.approx(float(variance) ** 0.5, rel=1e-6)
    assert told(events) == [("data-sums", 3, 0)]
    assert asked.count(DATA_SUMS) == 1
    assert asked.index(DATA_SUMS) < asked.index(TRAIN)
    assert result.history.rounds[-1].test["rmse"] < 1, "without it, columns of 50, -700 and 3 cannot be learnt"


def test_any_order_of_clients_gives_the_same_bits(run: RunConfig, clients: list[ClientConfig]) -> None:
    first = executed(run, clients)[0]
    for order in ((2, 0, 1), (1, 2, 0)):
        other = executed(run, [clients[i] for i in order])[0]
        for key, value in first.state.model.items():
            assert torch.equal(value, other.state.model[key]), key


def test_in_one_process_and_over_the_link_it_has_the_same_bits(
    run: RunConfig, clients: list[ClientConfig], tmp_path: Path
) -> None:
    local = in_one_process(run, clients, flower_app.app)
    assert_same_bits(local, over_the_link(run, clients, flower_app.app, tmp_path, agreed=True))


def test_the_exported_model_normalises_as_the_run_did(
    run: RunConfig, clients: list[ClientConfig], tmp_path: Path
) -> None:
    result, folder = executed(run, clients)[0], tmp_path / "run"
    folder.mkdir()
    write_files(folder, result, summary_of("run", result))
    state = load(folder).model.state_dict()
    assert torch.equal(state["0.mean"], result.state.model["0.mean"])
    assert torch.equal(state["0.deviation"], result.state.model["0.deviation"])
    said = CliRunner().invoke(command, ["predict", str(folder), run.evaluate.test, "--json", "-"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["metrics"]["rmse"] == result.history.rounds[-1].test["rmse"]


def test_a_task_without_sums_asks_nothing(tmp_path: Path) -> None:
    clients = [ClientConfig(name=n, data=write_line(tmp_path / f"{n}.npz", 1), device="cpu") for n in "ab"]
    plain = parse_run(LINE)
    _, events, asked = executed(plain, clients)
    assert DATA_SUMS not in asked
    assert told(events) == []
    host = AppHost(clients[0], flower_app.app)
    with LocalGrid(plain, clients[:1]) as grid, pytest.raises(FedncError, match="declares none"):
        ask_host(host, plain, grid)


def test_they_are_answered_before_round_1_only(run: RunConfig, clients: list[ClientConfig]) -> None:
    host = AppHost(clients[0], flower_app.app)
    with LocalGrid(run, clients[:1]) as grid:
        assert ask_host(host, run, grid).content[DATA]
        with pytest.raises(FedncError, match="in round 2, expected round 1"):
            ask_host(host, run, grid, server_round=2)


def ask_host(host: AppHost, run: RunConfig, grid: LocalGrid, server_round: int = 1) -> Message:
    host.prepare(pb.Welcome(node_id=7, run_id="run", run_json=run.for_clients()))
    content = messages.instruction_content(Instruction.under(run, server_round))
    return host.work(grid.create_message(content, DATA_SUMS, 7, "0"))


class OneMoreGrid(AskedGrid):
    """The last client is there from round 2 on."""

    def get_node_ids(self) -> Iterable[int]:
        nodes = list(super().get_node_ids())
        return nodes if self.__dict__.get("asked", []).count(TRAIN) else nodes[:-1]


def test_a_client_that_joins_later_gets_them_with_the_model(run: RunConfig, clients: list[ClientConfig]) -> None:
    trained_with: dict[str, list[bytes]] = {}

    def watching(message: Message, context: Context) -> Message:
        if message.metadata.message_type == TRAIN:
            mean = arrays.from_record(message.content[MODEL])["0.mean"]
            trained_with.setdefault(str(context.node_config["name"]), []).append(mean.numpy().tobytes())
        return flower_app.app(message, context)

    with OneMoreGrid(run, clients, watching) as grid:
        result = FederatedRun(run, EventLog()).execute(grid, Surroundings(name_of=grid.name_of))
    assert [one.replies for one in result.history.rounds] == [2, 3, 3]
    assert all(map(torch.equal, normalisation(result), normalisation(executed(run, clients[:2])[0])))
    mean = normalisation(result)[0].numpy().tobytes()
    assert trained_with == {"anna": [mean] * 3, "bert": [mean] * 3, "carl": [mean] * 2}


# ---- restarts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dies_before", "asks_again"), [((TRAIN, "1"), True), ((TRAIN, "2"), False), ((TRAIN, "3"), False)]
)
def test_a_server_that_is_killed_asks_again_only_before_its_first_checkpoint(
    dies_before: tuple[str, str], asks_again: bool, run: RunConfig, clients: list[ClientConfig], tmp_path: Path
) -> None:
    whole, _, _ = executed(run, clients)
    checkpoints = Checkpoints(tmp_path, keep=2)
    with AskedGrid(run, clients) as grid:
        grid.dies_before = dies_before
        with pytest.raises(KeyboardInterrupt):
            FederatedRun(run, EventLog()).execute(
                grid, Surroundings(name_of=grid.name_of, checkpoints=checkpoints)
            )
    again = FederatedRun(run, EventLog())
    if kept := checkpoints.latest(run.digest):
        again.restore(kept)
    assert (kept is None) == asks_again
    with AskedGrid(run, clients) as grid:  # clients that start anew, and never heard the question
        result = again.execute(grid, Surroundings(name_of=grid.name_of, checkpoints=checkpoints))
        assert (DATA_SUMS in grid.__dict__["asked"]) == asks_again
    assert_same_bits(whole, result)


# ---- who withholds -------------------------------------------------------------------------------------------


def test_a_small_site_withholds_its_sums_but_trains(
    run: RunConfig, clients: list[ClientConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = ClientConfig(name="few", data=write_scaled(tmp_path / "few.npz", 2, 9), device="cpu", val_share=0.0)
    result, events, _ = executed(run, [*clients, few])
    assert told(events) == [("data-sums", 3, 1)]
    assert all(map(torch.equal, normalisation(result), normalisation(executed(run, clients)[0])))
    assert result.history.rounds[-1].replies == 4
    assert "fewer than min_data_sum_examples = 10" in caplog.text


def test_a_client_may_have_its_own_minimum_and_all_clients_may_withhold(
    run: RunConfig, clients: list[ClientConfig]
) -> None:
    _, events, _ = executed(run, [replace(clients[0], min_sum_examples=201), *clients[1:]])
    assert told(events) == [("data-sums", 2, 1)]
    slow = run.model_copy(update={"train": run.train.model_copy(update={"lr": 1e-7})})  # its inputs are large
    result, events, _ = executed(slow, [replace(client, min_data_sum_examples=NEVER) for client in clients])
    assert told(events) == [("no-data-sums", 0, 3)]
    assert all(map(torch.equal, normalisation(result), (torch.zeros(3), torch.ones(3))))


@pytest.mark.parametrize(("allow", "withheld"), [({}, 1), ({"data_sums": True}, 0)])
def test_a_policy_sends_none_unless_its_owner_allows_it(
    allow: dict[str, bool], withheld: int, run: RunConfig, clients: list[ClientConfig], tmp_path: Path
) -> None:
    owner = Owner(Policy.model_validate({"allow": allow}), Ledger(tmp_path / "records"), clients[0].data, 0.0)
    bound = replace(owner.bind(clients[0]), secret="")
    _, events, _ = executed(run, [bound, *clients[1:]])
    assert told(events) == [("data-sums", 3 - withheld, withheld)]


def test_a_policy_judges_the_reply_too(run: RunConfig) -> None:
    none = ScaledTask(run).no_data_sums()
    held = pb.Declaration(examples=30)

    def codes(policy: Policy, examples: int, sums: Stats = none) -> set[str]:
        content = RecordDict({DATA: arrays.to_record(sums), METRICS: MetricRecord({EXAMPLES: examples})})
        return {code for code, _ in objections.to_reply(policy, DATA_SUMS, content, held, having=())}

    yes = open_but(allow={"data_sums": True, "subsets": False}, floor={"sum_examples": 20})
    assert codes(yes, 30) == set()
    assert codes(yes, 19) == {"sum", "subset"}
    assert codes(open_but(), 30) == {"data-sums"}
    assert codes(Policy(), 30, {}) == set(), "nothing is in it"
    assert [code for code, _ in objections.to_holdings(Policy(), run, held, having=())] == [
        "examples",
        "data-sums",
    ]


# ---- what is refused -----------------------------------------------------------------------------------------


def lying(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> App:
    """Clients, of which carl sends something else."""

    def app(message: Message, context: Context) -> Message:
        reply = flower_app.app(message, context)
        if message.metadata.message_type == DATA_SUMS and context.node_config["name"] == "carl":
            reply.content[DATA] = arrays.to_record(change(arrays.from_record(reply.content[DATA])))
        return reply

    return app


LIES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "a name": lambda sums: {**sums, "more": sums["sum"]},
    "no name": lambda sums: {"sum": sums["sum"]},
    "shape": lambda sums: {**sums, "sum": sums["sum"][:2]},
    "type": lambda sums: {**sums, "sum": sums["sum"].float()},
    "nan": lambda sums: {**sums, "sum": sums["sum"] * float("nan")},
    "infinite": lambda sums: {**sums, "square": sums["square"] * float("inf")},
    "large": lambda sums: {**sums, "square": sums["square"] + 2.0**301},
    "more than announced": lambda sums: {name: value * 2 for name, value in sums.items()},
    "impossible": lambda sums: {**sums, "sum": sums["sum"] * 100},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_hostile_reply_is_refused_and_counted_against_its_node(
    lie: str, run: RunConfig, clients: list[ClientConfig]
) -> None:
    rejected: list[str] = []
    result, events, _ = executed(run, clients, app=lying(LIES[lie]), rejected=rejected)
    assert rejected == ["carl"]
    assert told(events) == [("data-sums", 2, 0)]
    assert all(map(torch.equal, normalisation(result), normalisation(executed(run, clients[:2])[0])))
    assert result.history.rounds[-1].replies == 3


def test_the_link_takes_no_upload_of_another_form(run: RunConfig) -> None:
    prepared = FederatedRun(run, EventLog())
    agreement = ReplySchema.of(prepared.task, prepared.state.trainable, is_first=True)
    honest = prepared.task.no_data_sums()

    def check(sums: Stats) -> None:
        content = RecordDict({DATA: arrays.to_record(sums), METRICS: MetricRecord({EXAMPLES: 1})})
        agreement.check(DATA_SUMS, records.to_manifest(content, with_digests=False))

    check(honest)
    check({})
    for lie in ("a name", "no name", "shape", "type"):
        with pytest.raises(InvalidError):
            check(LIES[lie](honest))


def test_too_few_answers_end_the_run(run: RunConfig, clients: list[ClientConfig]) -> None:
    all_needed = run.model_copy(update={"rounds": run.rounds.model_copy(update={"min_clients": 3})})
    with pytest.raises(QuorumError, match="2 clients answered the request for sums of the data, 3 are needed"):
        executed(all_needed, clients, app=lying(LIES["impossible"]))


def test_data_that_are_not_finite_are_named_at_the_client(
    run: RunConfig, clients: list[ClientConfig], tmp_path: Path
) -> None:
    with np.load(tmp_path / "carl.npz") as found:
        x, y = found["x"].copy(), found["y"]
    x[3, 1] = np.inf
    np.savez(tmp_path / "carl.npz", x=x, y=y)
    host = AppHost(clients[2], flower_app.app)
    with LocalGrid(run, clients[:2]) as grid, pytest.raises(DataError, match="Remove or repair such values"):
        ask_host(host, run, grid)


# ---- mistakes of a task --------------------------------------------------------------------------------------


class TrainedToo(ScaledTask):
    def aggregation(self, key: str) -> Aggregation:
        return Aggregation.MEAN


class NotFinite(ScaledTask):
    def with_data_sums(self, model: nn.Module, sums: Stats) -> None:
        model[0].deviation.zero_().log_()  # type: ignore[index, operator, union-attr]


class Narrow(ScaledTask):
    def no_data_sums(self) -> Stats:
        return {name: value.float() for name, value in super().no_data_sums().items()}


@pytest.mark.parametrize(
    ("task", "error", "text"),
    [
        (TrainedToo, ConfigError, "wrote '0.mean', whose aggregation is 'mean'"),
        (NotFinite, DataError, "give values of '0.deviation' that are not finite"),
        (Narrow, ConfigError, "expected zeros of float64 or int64"),
    ],
)
def test_a_task_that_writes_what_it_must_not_is_an_error(
    task: type[ScaledTask],
    error: type[FedncError],
    text: str,
    run: RunConfig,
    clients: list[ClientConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PROTOTYPES, "scaled", task)
    with pytest.raises(error, match=text):
        executed(run, clients)


# ---- the test kit for authors of tasks -----------------------------------------------------------------------


class Unbounded(ScaledTask):
    def check_data_sums(self, sums: Stats, announced: int) -> None:
        del sums, announced


class NotAdditive(ScaledTask):
    def data_sums(self, data: TaskData, least: int) -> Stats:
        sums = super().data_sums(data, least)
        return {**sums, "sum": sums["sum"] / data.examples}


@pytest.mark.parametrize("task", [ScaledTask, Unbounded, NotAdditive])
def test_the_test_kit_finds_sums_that_do_not_add_up_and_a_check_that_refuses_nothing(
    task: type[ScaledTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOTYPES, "scaled", task)

    class Contract(TaskContract):
        data = write_scaled(tmp_path / "data.npz", 1)
        options: ClassVar = {"features": 3}
        tables: ClassVar = {key: value for key, value in SCALED.items() if key != "task"}

    Contract.task = "scaled"
    tests = dict(promises(Contract))
    test = tests["sums of the data add up and pass its own check"]
    if task is not ScaledTask:
        with pytest.raises(AssertionError):
            test()
        return
    for test in tests.values():
        test()
