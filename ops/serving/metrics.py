"""Prometheus metrics of served models, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class ServeMetrics:
    """Counters, gauges and histograms of one serving process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fednc_serve_requests",
            "Requests answered, by model, version and share (champion or canary).",
            ["model", "version", "share"],
            registry=self.registry,
        )
        self.refused = Counter(
            "fednc_serve_refused", "Requests refused, by reason.", ["problem"], registry=self.registry
        )
        self.seconds = Histogram(
            "fednc_serve_seconds",
            "Seconds from a request's content to its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "fednc_serve_batch_examples",
            "Examples per batch.",
            ["model"],
            buckets=_SIZES,
            registry=self.registry,
        )
        self.swaps = Counter(
            "fednc_serve_swaps",
            "Versions that were to be served, by result: served, or failed and not served.",
            ["model", "result"],
            registry=self.registry,
        )
        self.ready = Gauge("fednc_serve_ready", "1 while a model is served.", ["model"], registry=self.registry)
        self.stale = Gauge(
            "fednc_serve_stale", "1 while the served version is stale.", ["model"], registry=self.registry
        )
        self.info = Gauge(
            "fednc_serve_version",
            "1 for each version that is served now.",
            ["model", "version", "digest", "share"],
            registry=self.registry,
        )

    def page(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
