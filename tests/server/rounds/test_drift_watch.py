"""Drift alarms in a run: told once, taken back, without the name of a client that asks not to be listed."""

from __future__ import annotations

import tempfile
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.common.config.run import parse_run
from fednc.common.learning import drift_alarm
from fednc.common.learning.class_memory import ClassSums
from fednc.common.learning.drift_alarm import ClientMeans
from fednc.common.learning.frame import unit
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.drift_watch import DriftWatch
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import ClientDrifts, DiskProblem, DriftOver, Event
from fednc.server.storage.history import RoundRecord
from support.heard_events import of_kind

K, D = 3, 8
CLASSES = [str(digit) for digit in range(10)]
NAMES = {k: f"site-{k}" for k in range(5)}


class Watched:
    """A watch, and what it tells."""

    def __init__(self, rate: float = 0.001) -> None:
        self.told: list[Event] = []
        events = EventLog()
        events.listen(self.told.append)
        self.watch = DriftWatch(rate, events, NAMES.__getitem__)

    def round(
        self,
        number: int,
        shifted: AbstractSet[int],
        asked: AbstractSet[int] = frozenset(NAMES),
        unnamed: AbstractSet[int] = frozenset(),
    ) -> list[Event]:
        """One exchange; what it told."""
        before = len(self.told)
        with self.watch.exchange(number, ClassSums.zeros(K, D, moment=True), ["a", "b", "c"]) as exchange:
            for k in sorted(asked):
                exchange.add(sums(number, k, k in shifted), k, is_named=k not in unnamed)
        return self.told[before:]


def sums(number: int, client: int, is_shifted: bool) -> ClassSums:
    g = torch.Generator().manual_seed(10 * number + client)
    label_N = torch.arange(120) % K
    feat_ND = 2 * torch.eye(K, D)[label_N] + 0.4 * torch.randn(120, D, generator=g)
    feat_ND[label_N == 1, 5] += 1.5 * is_shifted
    return ClassSums.zeros(K, D, moment=True).add_batch(unit(feat_ND), label_N)


def test_an_alarm_is_told_when_it_begins_and_when_it_ends() -> None:
    watched = Watched()
    assert watched.round(1, set()) == []
    (alarm,) = watched.round(2, {3})
    assert isinstance(alarm, ClientDrifts)
    assert (alarm.node, alarm.round, alarm.classes[0]) == ("site-3", 2, "b")
    assert alarm.times > 1.5
    assert alarm.chance < 0.001
    assert list(watched.watch.alarms) == ["site-3"]
    assert watched.round(3, {3}) == [], "not told again"
    assert watched.round(4, set(), asked={0, 1, 2, 4}) == [], "nobody knows how a client is that was not asked"
    (over,) = watched.round(5, set())
    assert isinstance(over, DriftOver)
    assert (over.node, over.round, watched.watch.alarms) == ("site-3", 5, {})


def test_no_alarm_ends_while_more_clients_may_be_far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    assert of_kind(ClientDrifts, watched.round(1, {3}))
    monkeypatch.setattr(drift_alarm, "MOST_ALARMS", 0)
    assert watched.round(2, {1}) == []
    assert watched.round(3, {1}, unnamed={3}) == []
    assert watched.watch.alarms == {}, "site-3 is no longer listed"
    monkeypatch.undo()
    (over,) = watched.round(4, set())
    assert isinstance(over, DriftOver)
    assert over.node == "site-3"


def test_a_client_that_is_not_listed_is_not_named() -> None:
    watched = Watched()
    (alarm,) = watched.round(1, {2}, unnamed={2})
    (over,) = watched.round(2, set(), unnamed={2})
    for event in (alarm, over):
        assert event.node == ""  # type: ignore[attr-defined]
        assert "site-2" not in event.text
    assert watched.watch.alarms == {}


def test_a_client_that_is_no_longer_listed_loses_its_place_in_the_list_of_alarms() -> None:
    watched = Watched()
    watched.round(1, {2})
    assert list(watched.watch.alarms) == ["site-2"]
    watched.round(2, {2}, unnamed={2})
    assert watched.watch.alarms == {}


def test_alarms_of_one_run_are_not_shown_in_the_next() -> None:
    control = RunControl()
    control.complete(RoundRecord(round=1), 0.0, drifting={"site-2": "drift alarm"})
    control.next_run()
    assert control.drifting == {}


def test_no_alarms_are_told_if_none_are_wanted_or_the_metric_is_missing() -> None:
    assert Watched(rate=0.0).round(1, {2}) == []
    watched = Watched()
    with watched.watch.exchange(1, ClassSums.zeros(K, D), ["a", "b", "c"]) as exchange:
        for k in NAMES:
            exchange.add(sums(1, k, k == 2), k, is_named=True)
    assert watched.told == []


@pytest.mark.parametrize(
    "where", [(np, "save"), (tempfile, "TemporaryFile"), (ClientMeans, "deviations"), (ClientMeans, "close")]
)
def test_a_full_disk_costs_the_alarms_of_a_round_only(
    where: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the file is made, when sums are written, and when what is still buffered is."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    watched = Watched()
    with monkeypatch.context() as patch:
        patch.setattr(*where, full)
        told = watched.round(1, {3})
    closes = where[1] == "close"  # then the alarms are known already
    assert [type(each) for each in told] == [ClientDrifts if closes else DiskProblem]
    after = watched.round(2, set() if closes else {3})
    assert [type(each) for each in after] == [DriftOver if closes else ClientDrifts]


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> list[ClientConfig]:
    """Four clients with the same kind of images; those of the first are mirrored."""
    from sklearn.datasets import load_digits

    digits, folder = load_digits(), tmp_path_factory.mktemp("shifted")
    order = np.random.default_rng(0).permutation(800)
    clients = []
    for k, part in enumerate(np.array_split(order, 4)):
        image = (digits.images[part] * 15).astype(np.uint8)
        path = folder / f"{k}.npz"
        np.savez(
            path,
            x_train=image[:, :, ::-1] if k == 0 else image,
            y_train=digits.target[part],
            classes=np.array(CLASSES),
        )
        clients.append(ClientConfig(name=f"site-{k}", data=f"npz:{path}", device="cpu"))
    return clients


@pytest.mark.parametrize("is_unnamed", [False, True])
def test_a_run_tells_which_client_has_other_images(shifted: list[ClientConfig], is_unnamed: bool) -> None:
    """From the clients' class sums to the event and the run's control. It costs the client nothing."""
    run = parse_run(
        {
            "task": {"classes": CLASSES, "size": 8, "channels": 1, "width": 8},
            "frame": {"dim": 16},
            "rounds": {"total": 2, "min_clients": 4},
        }
    )
    first = replace(shifted[0], unnamed=True) if is_unnamed else shifted[0]
    told: list[Event] = []
    events, control = EventLog(), RunControl()
    events.listen(told.append)
    with LocalGrid(run, [first, *shifted[1:]]) as grid:
        result = FederatedRun(run, events).execute(grid, Surroundings(name_of=grid.name_of, control=control))
    (alarm,) = of_kind(ClientDrifts, told)
    assert alarm.node == ("" if is_unnamed else "site-0")
    assert [record.replies for record in result.history.rounds] == [4, 4]
    assert list(control.drifting) == ([] if is_unnamed else ["site-0"])
