"""Bad lines, corrupted bytes, wrong clocks and a full disk do not change the final model."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from conftest import Reference

from fednc.common.security.authority import Authority
from fednc.common.security.credentials import Holder, Role
from support.process_federation import NAMES, Stage
from support.tcp_proxy import Proxy

YEAR = timedelta(days=365)
CLOCKS_S = {"server": 0.0, NAMES[0]: 600.0, NAMES[1]: -600.0}


def test_a_line_that_is_cut_twice_and_then_loses_everything(
    stage: Callable[..., Stage], reference: Reference
) -> None:
    """Also a slow line. What was received is kept: no byte of an upload is counted twice."""
    run = stage()
    cuts = ((1_500_000, "cut"), (4_000_000, "cut"), (8_000_000, "swallow"))
    proxy = Proxy(run.port, cuts, up_per_s=4e6, down_per_s=8e6)
    server, near, far = run.server(), run.client(NAMES[1]), run.client(NAMES[0], port=proxy.port)
    assert [process.wait() for process in (server, near, far)] == [0, 0, 0], run.log("server")
    proxy.close()
    assert proxy.done == ["cut", "cut", "swallow"]
    assert len(run.events("attend", node=NAMES[0])) == 4
    assert not run.events("lost", node=NAMES[1])
    assert run.digest() == reference.digest
    assert run.bytes_up() == reference.bytes_up


def test_bytes_corrupted_on_the_way_and_a_reply_that_comes_twice(
    stage: Callable[..., Stage], reference: Reference
) -> None:
    run = stage()
    at_server = ("server.download:2:truncate", "server.upload:10:corrupt", "server.committed:3:raise")
    at_client = ("client.download:1:corrupt", "client.upload:2:corrupt", "client.upload:9:truncate")
    server = run.server(",".join(at_server))
    clients = [run.client(NAMES[0], ",".join(at_client)), run.client(NAMES[1])]
    assert [process.wait() for process in (server, *clients)] == [0, 0, 0], run.log("server")
    assert sorted(run.faults()) == sorted(
        ":".join((fault.split(":")[0], fault.split(":")[2])) for fault in (*at_server, *at_client)
    )
    assert run.digest() == reference.digest
    assert not run.events("rejected"), "damage on the way is not counted against a node"


def test_clocks_that_are_ten_minutes_wrong_and_encryption(
    stage: Callable[..., Stage], reference: Reference, tmp_path: Path
) -> None:
    """Only Python sees the wrong clock here; in tests/faults/test_clocks.py the whole process does."""
    authority = Authority.create(tmp_path / "ca", "faults")
    authority.issue_server(["127.0.0.1"], YEAR)
    for name in NAMES:
        authority.issue_certificate(Holder(Role.NODE, name), YEAR)
    run = stage(certs=tmp_path / "ca")
    server = run.server(skew_s=CLOCKS_S["server"])
    clients = [run.client(name, skew_s=CLOCKS_S[name]) for name in NAMES]
    assert [process.wait() for process in (server, *clients)] == [0, 0, 0], run.log("server")
    assert not run.events("lost")
    assert run.digest() == reference.digest


def test_a_disk_that_is_full_at_the_checkpoint(stage: Callable[..., Stage], reference: Reference) -> None:
    """The run waits for space and leaves no half-written file."""
    run = stage()
    faults = "server.checkpoint.begin:2:enospc,file.half:6:enospc,server.upload:5:enospc"
    server, *clients = run.server(faults), *map(run.client, NAMES)
    assert [process.wait() for process in (server, *clients)] == [0, 0, 0], run.log("server")
    assert sorted(run.faults()) == ["file.half:enospc", "server.checkpoint.begin:enospc", "server.upload:enospc"]
    assert len(run.events("disk")) == 3
    assert all("free" in event["text"] for event in run.events("disk"))
    assert not [path for path in (run.run / "checkpoints").iterdir() if path.name.startswith(".")]
    assert run.digest() == reference.digest
