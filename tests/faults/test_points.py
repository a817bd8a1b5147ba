"""Every fault point is used by a test of this suite. Runs last (see conftest.py)."""

from __future__ import annotations

import pytest

from fednc.common.fault_injection import POINTS


def test_every_point_was_hit(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> None:
    logs = list(tmp_path_factory.getbasetemp().rglob("faults.log"))
    if len({item.path for item in request.session.items}) < 2:
        pytest.skip("only the whole suite hits all points")
    hit = {line.split()[1] for log in logs for line in log.read_text().splitlines()}
    here = {
        point for point in POINTS if not point.startswith(("pipeline.", "registry."))
    }  # those are hit in tests/ops
    assert here - hit == set()
