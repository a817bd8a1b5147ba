"""`fednc bench serve` measures real processes and checks their answers."""

from __future__ import annotations

import pytest

from fednc.bench.serving.driver import ServeLoad, measure


@pytest.mark.timeout(300)  # starts two servers that load torch
def test_every_way_to_ask_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("fednc.bench.serving.driver._WARM_S", 0.2)
    rows = measure(None, ServeLoad(callers=8, seconds=0.3, repeats=1), lambda _line: None)
    assert [row["server"] for row in rows] == ["bare", "REST, JSON", "REST, binary", "gRPC"]
    assert rows[0]["to_bare"] == 1.0
    assert all(row["requests"] > 8 and row["p50_ms"] <= row["p99_ms"] and row["cpu_ms"] > 0 for row in rows)
