"""Prometheus metrics of a run, on a port of their own.

Started by `server/listener.py` if the run file asks for it. Gauges are read on the event loop at each scrape;
counters are fed by events. A thread of the client library serves them, so a scrape never waits for a round.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar
from wsgiref.simple_server import make_server

from prometheus_client import CollectorRegistry, Histogram, make_wsgi_app
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fednc.common.errors import AddressError
from fednc.common.tasks.metric_info import PERCENT
from fednc.protos import operator_pb2 as pb
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import NodeState
from fednc.server.operations.scrape_server import BoundedServer, QuietHandler
from fednc.server.operations.status import status_of
from fednc.server.rounds.control import RunControl
from fednc.server.storage.events import Event, ReplyUnusable, RoundCompleted

T = TypeVar("T")
Asked = tuple[pb.RunStatus, Counter[str], Counter[str]]  # status, rejected messages, refused calls
_SCRAPE_S = 5.0  # for the event loop to answer
_ROUND_S = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
_FOLD_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
_ENDINGS = r"_(total|created|sum|count|bucket)$"  # that Prometheus adds to names
# Names of all metrics here, without `fednc_`.
OUR_NAMES = {
    "round",
    "rounds",
    "rounds_completed",
    "paused",
    "missing",
    "loss",
    "clients",
    "bytes",
    "client_primary",
}
OUR_NAMES |= {"rejections", "refusals", "events", "failed_replies", "round_seconds", "fold_seconds"}
_SHOWN_STATES = [state for state in NodeState if state is not NodeState.REHEARSING]


class RunCollector(Collector):
    """Asks for the status of the run at each scrape."""

    def __init__(self, ask: Callable[[], Asked]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        status, rejections, refused = self._ask()
        yield GaugeMetricFamily("fednc_round", "Current or next round.", status.round)
        yield GaugeMetricFamily("fednc_rounds", "Rounds that the run file asks for.", status.rounds)
        yield GaugeMetricFamily("fednc_rounds_completed", "Rounds completed.", status.completed)
        yield GaugeMetricFamily("fednc_paused", "1 while the run is paused.", status.paused)
        yield GaugeMetricFamily("fednc_missing", "Clients that the round waits for.", len(status.missing))
        if status.HasField("primary"):
            yield _primary(status.primary)
        if status.HasField("loss"):
            yield GaugeMetricFamily("fednc_loss", "Loss after the last completed round.", status.loss)
        if status.HasField("spread"):
            yield _spread(status.spread)
        yield _clients(status)
        traffic = CounterMetricFamily(
            "fednc_bytes", "Bulk bytes at the link in the whole run.", labels=["direction"]
        )
        traffic.add_metric(["up"], status.bytes_up)
        traffic.add_metric(["down"], status.bytes_down)
        yield traffic
        yield _rejections(rejections)
        yield _refusals(refused)


def _primary(metric: pb.MetricValue) -> Metric:
    """The primary metric of the run's task, under its own name, or as `primary_<name>` if that is one of ours.

    Prometheus rejects a whole scrape in which two metrics have one name.
    """
    name = re.sub(r"[^a-zA-Z0-9_]", "_", metric.name)
    better = "lower" if metric.lower_is_better else "higher"
    unit = "0 to 1" if metric.unit == PERCENT else metric.unit
    explained = ", ".join(filter(None, [unit, f"{better} is better"]))
    text = f"{name.capitalize()} after the last completed round ({explained})."
    is_ours = re.sub(_ENDINGS, "", name) in OUR_NAMES
    return GaugeMetricFamily(f"fednc_primary_{name}" if is_ours else f"fednc_{name}", text, metric.value)


def _spread(spread: pb.Spread) -> Metric:
    """Five numbers, however many clients there are; `fednc status` and clients.jsonl have each client."""
    family = GaugeMetricFamily(
        "fednc_client_primary", "Primary metric on what clients hold out, over the clients.", labels=["statistic"]
    )
    for name in ("min", "q1", "median", "q3", "max"):
        family.add_metric([name], getattr(spread, name))
    return family


def _clients(status: pb.RunStatus) -> Metric:
    family = GaugeMetricFamily("fednc_clients", "Clients by state.", labels=["state"])
    states = Counter(node.state for node in status.nodes)
    for state in _SHOWN_STATES:
        family.add_metric([state], states[state])
    return family


def _rejections(by_field: Counter[str]) -> Metric:
    family = CounterMetricFamily(
        "fednc_rejections", "Messages and replies that no honest client sends.", labels=["call", "field"]
    )
    for name, count in sorted(by_field.items()):
        call, _, field = name.partition(".")
        family.add_metric([call, field], count)
    return family


def _refusals(by_status: Counter[str]) -> Metric:
    family = CounterMetricFamily(
        "fednc_refusals", "Calls refused by the interceptor, by status.", labels=["status"]
    )
    for status, count in sorted(by_status.items()):
        family.add_metric([status], count)
    return family


class EventCounters:
    """Counts events since the server started."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = CounterMetric("fednc_events", "Events by kind.", ["kind"], registry=registry)
        self._failures = CounterMetric(
            "fednc_failed_replies", "Assignments without a usable reply.", ["client"], registry=registry
        )
        self._round_s = Histogram("fednc_round_seconds", "Seconds per round.", buckets=_ROUND_S, registry=registry)
        self._fold_s = Histogram(
            "fednc_fold_seconds", "Seconds per round spent on aggregation.", buckets=_FOLD_S, registry=registry
        )

    def note(self, event: Event) -> None:
        """Count one event."""
        self._events.labels(event.kind).inc()
        if isinstance(event, ReplyUnusable):
            self._failures.labels(event.node).inc()
        elif isinstance(event, RoundCompleted):
            self._round_s.observe(event.record.seconds)
            self._fold_s.observe(event.fold_s)


class MetricsServer:
    """Serves the metrics of one federation until `close` is called."""

    def __init__(self, federation: Federation, control: RunControl, host: str, port: int) -> None:
        """Start listening; `port` 0 takes a free one. Call this on the event loop.

        Raises:
            AddressError: the port is taken or the host is unknown.
        """
        registry = CollectorRegistry()
        loop = asyncio.get_running_loop()
        federation.events.listen(EventCounters(registry).note)

        def read() -> Asked:
            return (
                status_of(federation, control),
                federation.door.rejections.copy(),
                federation.calls.refused.copy(),
            )

        def ask() -> Asked:
            return _on(loop, read)

        registry.register(RunCollector(ask))
        try:
            self._server = make_server(host, port, make_wsgi_app(registry), BoundedServer, QuietHandler)
        except OSError as e:
            raise AddressError(
                f"cannot serve metrics on {host}:{port}: {e.strerror}; stop the other process, or choose another "
                "server.metrics_port or server.metrics_host"
            ) from e
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _on(loop: asyncio.AbstractEventLoop, read: Callable[[], T]) -> T:
    async def step() -> T:
        return read()

    return asyncio.run_coroutine_threadsafe(step(), loop).result(_SCRAPE_S)
