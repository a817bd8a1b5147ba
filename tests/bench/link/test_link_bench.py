"""The benchmarks of the link, at the smallest sizes: rows are complete, and bytes counted are bytes sent."""

from __future__ import annotations

import math

import pytest

from fednc.bench.fold import measure as measure_fold
from fednc.bench.link import bare_grpc, certificates, driver, noop_app, scale
from fednc.common.errors import RunFailedError
from fednc.common.wire import update_codec

PARAMS, CLIENTS = 5000, 2


def quiet(_: str) -> None: ...


def settings(codec_name: str, tls: str) -> driver.Settings:
    return driver.Settings(params=PARAMS, clients=CLIENTS, rounds=1, warmup=1, codec=codec_name, tls=tls)


def payload(codec_name: str) -> int:
    """Bytes of one update's values."""
    sizes = [array.size for array in noop_app.initial_model(PARAMS).values()]
    codec = update_codec.delta_codec(codec_name)
    return sum(codec.nbytes(size) if codec else 4 * size for size in sizes)


@pytest.mark.parametrize(("codec_name", "tls", "others"), [("fp32", "off", []), ("int8", "mtls", ["raw"])])
def test_bytes_counted_are_bytes_sent(codec_name, tls, others):
    rows = driver.compare(settings(codec_name, tls), others, quiet)
    assert [row["engine"] for row in rows] == ["fednc", *others]
    for row in rows:
        assert row["connections"] == row["clients"] == CLIENTS
        assert (row["codec"], row["tls"]) == (codec_name, tls)
        assert len(row["rounds_s"]) == 1
        assert min(row["round_s"], row["cpu_s"], row["server_peak_rss_mib"]) > 0
        up, down = row["bytes_up"] / CLIENTS, row["bytes_down"] / CLIENTS
        assert 0 <= up - payload(codec_name) < 200 * len(noop_app.initial_model(PARAMS))
        assert 0 <= down - payload("fp32") < 200 * len(noop_app.initial_model(PARAMS))
    for bare in rows[1:]:
        assert bare["chunk_bytes"] in bare_grpc.CHUNKS
        assert (bare["bytes_up"], bare["bytes_down"]) == (rows[0]["bytes_up"], rows[0]["bytes_down"])
        assert bare["speedup"] == bare["round_s"] / rows[0]["round_s"]
        assert set(rows[0]) <= set(bare), "a table has one set of columns"


def test_many_clients_each_have_a_connection():
    row = scale.measure(5, 100, 1, quiet, "mtls")
    assert row["connections"] == row["clients"] == 5
    assert row["tls"] == "mtls"
    assert row["total_s"] > row["connect_s"] > 0
    assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))


def test_every_combination_is_measured_once():
    mixes = driver.every([1, 2], [3], ["fp32", "int8"], ["off", "mtls"], rounds=1)
    assert len({(one.params, one.codec, one.tls) for one in mixes}) == len(mixes) == 8


def test_a_process_that_ends_early_is_named():
    with (
        pytest.raises(RunFailedError, match=r"link\.server ended with code 1"),
        certificates.keys("off", 1) as folder,
    ):
        driver.run(settings("no codec", "off"), folder)


def test_the_fold_benchmark_counts_its_bytes():
    row = measure_fold(params=1 << 18, repeats=2)
    assert row["params"] == 1 << 18
    assert row["ratio"] == pytest.approx(row["moved_gb_s"] / row["copy_gb_s"], rel=0.2)
    assert row["moved_gb_s"] == pytest.approx(5 * row["payload_gb_s"], rel=0.05)
