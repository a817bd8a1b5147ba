"""Metrics of the clients for Prometheus and operators: as many series for a thousand clients as for two."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fednc.cli import status as command
from fednc.common.config.run import RunConfig
from fednc.common.tasks.metric_info import ACCURACY
from fednc.protos import operator_pb2 as op
from fednc.server.link.federation import Federation
from fednc.server.operations.prometheus import RunCollector
from fednc.server.operations.status import status_of
from fednc.server.rounds.control import RunControl
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.history import RoundRecord, spread_of


@pytest.mark.parametrize("clients", [2, 1000])
def test_five_series_for_any_number_of_clients(clients: int) -> None:
    values = [place / clients for place in range(clients)]
    nodes = [
        op.NodeStatus(name=f"edge-{place}", primary=op.MetricValue(value=v)) for place, v in enumerate(values)
    ]
    spread = {**spread_of(values), "clients": clients}
    status = op.RunStatus(nodes=nodes, spread=op.Spread(**spread))  # type: ignore[arg-type]
    families = RunCollector(lambda: (status, Counter(), Counter())).collect()
    (found,) = [family for family in families if family.name == "fednc_client_primary"]
    assert {sample.labels["statistic"]: sample.value for sample in found.samples} == {
        name: value for name, value in spread.items() if name != "clients"
    }
    assert all(set(sample.labels) == {"statistic"} for sample in found.samples)


def test_the_status_has_the_spread_of_the_last_round(tmp_path: Path) -> None:
    federation = Federation("run", RunConfig(), tmp_path, EventLog())
    control = RunControl()
    control.begin(ACCURACY)
    assert not status_of(federation, control).HasField("spread")
    control.complete(RoundRecord(round=1, spread=spread_of([0.2, 0.6])), 0.0, {"edge-1": {"accuracy": 0.6}})
    spread = status_of(federation, control).spread
    assert (spread.clients, spread.min, spread.median, spread.max) == (2, 0.2, pytest.approx(0.4), 0.6)


def test_the_table_shows_a_drift_alarm() -> None:
    node = op.NodeStatus(name="a", state="ready", problem="drift alarm: 3.4 times as far")
    assert command._row(node)[command.COLUMNS.index("state")] == "ready: drift alarm: 3.4 times as far"


def test_the_table_shows_what_each_client_reached() -> None:
    value = op.MetricValue(name="accuracy", value=0.625, unit="%")
    place = command.COLUMNS.index("held out")
    assert command._row(op.NodeStatus(name="a", primary=value))[place] == "62.5%"
    assert command._row(op.NodeStatus(name="a"))[place] == "-"


def test_the_status_says_who_owns_which_part_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [op.NodeStatus(name="anna", holdings={"depth": 7}), op.NodeStatus(name="bert", holdings={"edges": 3})]
    assert command._holdings(nodes) == (["name", "depth", "edges"], [["anna", 7, "-"], ["bert", "-", 3]])
    assert command.as_json(op.RunStatus(nodes=nodes))["nodes"][0]["holdings"] == {"depth": 7}
    command._show(op.RunStatus(nodes=nodes))
    assert "examples by part of the task" in capsys.readouterr().err
    command._show(op.RunStatus(nodes=[op.NodeStatus(name="anna")]))
    assert "part of the task" not in capsys.readouterr().err
