"""`rounds.stop_after` and `rounds.keep`: when a run ends and with which model, also after a restart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.tasks.metric_info import ACCURACY, MetricInfo
from fednc.common.wire.messages import EVALUATE, TRAIN
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage.checkpoint import Checkpoints
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import BestKept, BestLost, Event, JudgedByTestData, StoppedEarly
from fednc.server.storage.history import History, RoundRecord, spread_of
from support.clinics import clinics, clinics_run
from support.contract_run import assert_same_bits
from support.heard_events import of_kind
from support.prototype_tasks import installed

WORSENING = {"train": {"lr": 0.4, "momentum": 0.9, "batch": 8}}  # good in early rounds, then erratic


def history(values: Sequence[float | None], metric: MetricInfo = ACCURACY, test: float | None = None) -> History:
    """One round per value on held-out data; None: not evaluated. `test`: what the test data always says."""
    said = {} if test is None else {metric.name: test}
    rounds = [
        RoundRecord(round=number, pooled={} if value is None else {metric.name: value}, test=said)
        for number, value in enumerate(values, start=1)
    ]
    return History(primary=metric, rounds=rounds)


@pytest.mark.parametrize(
    ("values", "patience", "stalled", "best"),
    [
        ([], 1, False, None),
        ([0.5], 1, False, 1),
        ([0.5, 0.5], 1, True, 1),
        ([0.5, 0.6, 0.55], 2, False, 2),
        ([0.5, 0.6, 0.55, 0.6], 2, True, 2),
        ([0.5, None, 0.4, None, 0.3], 2, True, 1),
        ([0.5, 0.4, 0.3, 0.2], 0, False, 1),
    ],
)
def test_patience_counts_evaluations(
    values: list[float | None], patience: int, stalled: bool, best: int | None
) -> None:
    for test in (None, 0.9):  # which must not matter, as clients hold examples out
        found = history(values, test=test if any(values) else None)
        assert (found.has_stalled(patience), found.best_round) == (stalled, best)
        assert not found.is_judged_by_test
    falling = MetricInfo("loss", higher_is_better=False)
    assert history([v and -v for v in values], falling).best_round == best


def test_test_data_decides_only_where_nobody_holds_examples_out() -> None:
    found = history([None, None], test=0.4)
    assert (found.best_round, found.is_judged_by_test) == (1, True)


def test_the_spread_is_that_of_an_independent_implementation() -> None:
    values = torch.rand(17, generator=torch.Generator().manual_seed(1)).double()
    found = spread_of([*values.tolist(), float("nan")])
    expected = torch.quantile(values, torch.tensor([0, 0.25, 0.5, 0.75, 1]).double()).tolist()
    assert [found[name] for name in ("min", "q1", "median", "q3", "max")] == pytest.approx(expected)
    assert (found["clients"], spread_of([])) == (17, {})


def test_sessions_refuse_both(tmp_path: Path) -> None:
    session = {"classes": ["x"], "rounds": 1}
    for rounds in ({"stop_after": 1}, {"keep": "best"}):
        with pytest.raises(ConfigError, match="leave them out, or leave out"):
            clinics_run(tmp_path, rounds=rounds, sessions=[session])


class DyingGrid(LocalGrid):
    """The server is killed before it asks this, in this round; notes the rounds that were trained."""

    dies_before: tuple[str, str] = ("", "")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        messages = list(messages)
        kinds = {(message.metadata.message_type, message.metadata.group_id) for message in messages}
        if self.dies_before in kinds:
            raise KeyboardInterrupt
        return super().send_and_receive(messages, timeout=timeout)


def executed(
    run: RunConfig,
    clients: Sequence[ClientConfig],
    folder: Path | None = None,
    dies_before: tuple[str, str] = ("", ""),
) -> tuple[RunResult, list[Event]]:
    """As `server/main.py` does it: restores what is in `folder`."""
    events, heard = EventLog(), list[Event]()
    events.listen(heard.append)
    prepared = FederatedRun(run, events)
    saved = Checkpoints(folder, keep=1) if folder else None
    best = Checkpoints(folder / "best", keep=1) if folder else None
    if saved and (kept := saved.latest(run.digest, run.decisive())):
        prepared.restore(kept)
        prepared.restore_best(best)
    with DyingGrid(run, clients) as grid:
        grid.dies_before = dies_before
        around = Surroundings(name_of=grid.name_of, checkpoints=saved, best=best)
        return prepared.execute(grid, around), heard


@pytest.fixture(autouse=True)
def prototypes() -> Iterator[None]:
    with installed():
        yield


def test_a_run_stops_and_keeps_its_best_model_also_if_it_is_killed(tmp_path: Path) -> None:
    clients = clinics(tmp_path)
    rounds = {"total": 30, "stop_after": 2, "keep": "best"}
    run = clinics_run(tmp_path, rounds=rounds, **WORSENING)
    whole, events = executed(run, clients)
    (stopped,) = of_kind(StoppedEarly, events)
    best, last = stopped.best, stopped.round
    assert last < 30
    assert last == best + 2 == len(whole.history.rounds)
    assert of_kind(BestKept, events)[0].round == whole.state.completed == best
    short = clinics_run(tmp_path, rounds={"total": best}, **WORSENING)
    only_best, _ = executed(short, clients)
    for key, value in only_best.state.model.items():
        assert torch.equal(whole.state.model[key], value), key
    assert torch.equal(whole.state.memory.mean_KD, only_best.state.memory.mean_KD)
    assert whole.after == only_best.after, "the temperature belongs to the model that is kept"

    deaths = [(EVALUATE, str(best)), (TRAIN, str(last)), ("query.calibrate", str(best))]
    for place, death in enumerate(deaths):
        folder = tmp_path / f"run-{place}"
        folder.mkdir()
        with pytest.raises(KeyboardInterrupt):
            executed(run, clients, folder, death)
        again, _ = executed(run, clients, folder)
        assert_same_bits(whole, again)
        assert (again.state.completed, again.after) == (best, whole.after)
    for path in (tmp_path / f"run-{len(deaths) - 1}" / "best").rglob("*.safetensors"):
        path.write_bytes(b"damaged")
    lost, events = executed(run, clients, tmp_path / f"run-{len(deaths) - 1}")
    assert of_kind(BestLost, events)
    assert lost.state.completed == last


def test_without_held_out_examples_the_choice_by_test_data_is_told(tmp_path: Path) -> None:
    clients = clinics(tmp_path, val_share=0.0)
    _, events = executed(clinics_run(tmp_path, rounds={"total": 2, "keep": "best"}), clients)
    assert len(of_kind(JudgedByTestData, events)) == 1
    _, events = executed(clinics_run(tmp_path, rounds={"total": 2}), clients)
    assert not of_kind(JudgedByTestData, events)
