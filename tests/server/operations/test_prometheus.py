"""Metrics: what a scrape says about the run, and what it counts."""

from __future__ import annotations

import asyncio
import urllib.request
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from fednc.client.link.channel import open_channel
from fednc.common.errors import AddressError
from fednc.protos import operator_pb2 as op
from fednc.server.link.nodes import NodeState
from fednc.server.operations.prometheus import OUR_NAMES, EventCounters, MetricsServer, RunCollector
from fednc.server.operations.status import status_of
from fednc.server.storage.events import ReplyUnusable, RoundCompleted
from fednc.server.storage.history import RoundRecord
from support.local_servers import Place, attending, invoke, is_ready, serving, until
from support.working_nodes import node_of

STATUS = op.DESCRIPTOR.services_by_name["Operator"].methods_by_name["Status"]


def scrape(port: int) -> dict[tuple[str, ...], float]:
    """Every sample as (name, label values) -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, *map(str, sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }


def test_metrics_say_what_the_status_says_and_count_what_happened(place: Place) -> None:
    async def scenario() -> None:
        async with (
            serving(place.folder, place.section()) as server,
            attending(server, "a", place.certificate("a")),
            open_channel(server.address, place.certificate("b"), 5) as node,
        ):
            metrics = MetricsServer(server.federation, server.control, "127.0.0.1", 0)
            try:
                await until(is_ready(server, "a"))
                node_of(server, "a").bytes_up = 7
                server.control.begin_round(3)
                server.federation.door.rejections["Upload.manifest.arrays"] += 2
                for _ in range(2):
                    await invoke(node, STATUS)  # refused; the log leaves the second one out
                for seconds in (0.2, 50.0):
                    record = RoundRecord(round=1, seconds=seconds)
                    server.federation.events.emit(RoundCompleted(text="", record=record, fold_s=seconds / 100))
                server.federation.events.emit(ReplyUnusable(text="", node="a", reason=""))
                found = await asyncio.to_thread(scrape, metrics.port)
                status = status_of(server.federation, server.control)
            finally:
                await asyncio.to_thread(metrics.close)
            states = Counter(node.state for node in status.nodes)
            shown = {key[1]: value for key, value in found.items() if key[0] == "fednc_clients"}
            assert shown == {state: states[state] for state in shown}
            assert shown.keys() == {*NodeState} - {NodeState.REHEARSING}
            assert found["fednc_round",] == 3
            assert (found["fednc_bytes_total", "up"], found["fednc_bytes_total", "down"]) == (7, 0)
            assert found["fednc_rejections_total", "Upload", "manifest.arrays"] == 2
            assert found["fednc_refusals_total", "PERMISSION_DENIED"] == 2
            assert found["fednc_failed_replies_total", "a"] == 1
            assert found["fednc_round_seconds_sum",] == pytest.approx(50.2)
            assert found["fednc_fold_seconds_bucket", "0.01"] == 1
            assert ("fednc_accuracy",) not in found

    asyncio.run(scenario())


def test_a_metric_of_a_task_never_has_the_name_of_one_of_ours() -> None:
    status = op.RunStatus(loss=0.5, nodes=[op.NodeStatus(name="a")], spread=op.Spread(clients=1))
    families = [*RunCollector(lambda: (status, Counter(), Counter())).collect()]
    registry = CollectorRegistry()
    EventCounters(registry)
    ours = {family.name for family in [*families, *registry.collect()]}
    assert ours == {f"fednc_{name}" for name in OUR_NAMES}
    samples = {sample.name for family in registry.collect() for sample in family.samples} | {"fednc_bytes_total"}
    for taken in ours | samples:
        status.primary.CopyFrom(op.MetricValue(name=taken.removeprefix("fednc_"), value=3.0, lower_is_better=True))
        (primary,) = _families_with_value(status, 3.0)
        assert primary.name == taken.replace("fednc_", "fednc_primary_")
        assert "lower is better" in primary.documentation


@pytest.mark.parametrize(("name", "shown"), [("rmse", "rmse"), ("3-year C (ü)", "3_year_C____")])
def test_any_name_of_a_metric_becomes_a_name_for_prometheus(name: str, shown: str) -> None:
    status = op.RunStatus(primary=op.MetricValue(name=name, value=3.0))
    assert [family.name for family in _families_with_value(status, 3.0)] == [f"fednc_{shown}"]


def _families_with_value(status: op.RunStatus, value: float) -> list[Metric]:
    families = RunCollector(lambda: (status, Counter(), Counter())).collect()
    return [family for family in families if any(sample.value == value for sample in family.samples)]


def test_metrics_have_their_own_port(place: Place) -> None:
    async def scenario() -> None:
        async with serving(place.folder, {}) as server:
            metrics = MetricsServer(server.federation, server.control, "127.0.0.1", 0)
            with pytest.raises(AddressError, match=r"server\.metrics_port"):
                MetricsServer(server.federation, server.control, "127.0.0.1", metrics.port)
            await asyncio.to_thread(metrics.close)

    asyncio.run(scenario())
