"""The process of a foreign ClientApp, without a link: what passes the pipe, and every way the process can end."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fednc.client.foreign.host import ForeignConfig, ForeignHost
from fednc.client.link.work_hooks import CURRENT, AppFailedError, Hooks, WorkCancelledError
from fednc.common import flower_adapter
from fednc.common.errors import ConfigError
from fednc.common.process.app_pipe import Pipe
from fednc.protos import federation_pb2 as pb

APPS = Path(__file__).parents[2] / "flower" / "apps"
KEYS = st.text(min_size=1, max_size=8)
DTYPES = hnp.integer_dtypes() | hnp.unsigned_integer_dtypes() | hnp.floating_dtypes() | hnp.boolean_dtypes()
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
INTS = st.integers(-(2**63), 2**63 - 1)
NUMBERS = INTS | st.floats(allow_nan=False) | st.lists(INTS) | st.lists(st.floats(allow_nan=False))
VALUES = NUMBERS | st.text() | st.binary() | st.booleans() | st.lists(st.text()) | st.lists(st.binary())


def contents() -> st.SearchStrategy[RecordDict]:
    arrays = st.dictionaries(KEYS, ARRAYS.map(Array), max_size=3).map(ArrayRecord)
    metrics = st.dictionaries(KEYS, NUMBERS, max_size=3).map(MetricRecord)
    configs = st.dictionaries(KEYS, VALUES, max_size=3).map(ConfigRecord)
    return st.dictionaries(KEYS, arrays | metrics | configs, max_size=4).map(RecordDict)


@given(st.lists(contents(), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_content_passes_the_pipe_unchanged(sent: list[RecordDict]) -> None:
    one, other = (Pipe(end) for end in socket.socketpair())
    writer = threading.Thread(target=lambda: [one.send_content(content) for content in sent])
    writer.start()
    received = [other.receive_content() for _ in sent]
    writer.join()
    one.close()
    assert received == sent
    assert [list(content) for content in received] == [list(content) for content in sent]
    assert all(type(a.data) is bytes for c in received for r in c.array_records.values() for a in r.values())
    with pytest.raises(EOFError):
        other.receive()
    other.close()


@contextmanager
def hosting(app: str, grace_s: float = 0.2) -> Iterator[tuple[ForeignHost, int]]:
    """A host with a running app, and the app's process id."""
    folder = flower_adapter.read_app(APPS / app)
    host = ForeignHost(ForeignConfig(app=folder, node_config={"partition-id": 0}, grace_s=grace_s))
    welcome = pb.Welcome(node_id=7, run_id="run", run_json='{"local.steps": 2, "local.lr": 0.5}')
    pid = host.prepare(welcome).pid
    try:
        yield host, pid
    finally:
        host.leave()
        assert not psutil.pid_exists(pid)


def instruction(server_round: int, how: str = "") -> Message:
    arrays = ArrayRecord([np.zeros((5, 3), np.float32), np.zeros(3)])
    config = ConfigRecord({"lr": 0.5, "server-round": server_round, "how": how})
    content = RecordDict({"arrays": arrays, "config": config})
    return flower_adapter.instruction(content, run_id="run", dst=7, message_type="train", group_id="")


def rounds_seen(reply: Message) -> object:
    return reply.content.metric_records["metrics"]["seen"]


def test_an_app_stays_and_keeps_its_state() -> None:
    with hosting("fedavg") as (host, pid):
        assert [rounds_seen(host.work(instruction(n))) for n in (1, 2, 3)] == [1, 2, 3]
        assert psutil.pid_exists(pid)
        host.prepare(pb.Welcome(node_id=7, run_id="next", run_json='{"local.steps": 2}'))
        assert rounds_seen(host.work(instruction(1))) == 1


def test_failures_have_class_and_message_and_keep_the_state() -> None:
    with hosting("trouble") as (host, pid):
        host.work(instruction(1))
        for how, kind, reason in [
            ("raise", "ZeroDivisionError", "of no use"),
            ("leave", "SystemExit", "had enough"),
            ("exit", "AppProcessEnded", "the app's process ended with exit code 3 at work"),
        ]:
            assert psutil.pid_exists(pid)
            with pytest.raises(AppFailedError) as failed:
                host.work(instruction(2, how))
            assert (failed.value.kind, str(failed.value)) == (kind, reason)
        assert not psutil.pid_exists(pid)
        assert rounds_seen(host.work(instruction(3))) == 2, "the state of round 1 is gone"


def test_cancelled_work_is_killed_after_the_grace_with_its_children() -> None:
    with hosting("trouble", grace_s=0.5) as (host, pid):
        hooks = Hooks()
        token = CURRENT.set(hooks)
        threading.Timer(0.5, hooks.cancelled.set).start()
        started = time.monotonic()
        with pytest.raises(WorkCancelledError):
            host.work(instruction(2, "sleep"))
        assert 1.0 <= time.monotonic() - started < 3.0
        assert not psutil.pid_exists(pid)
        CURRENT.reset(token)
        assert rounds_seen(host.work(instruction(3))) == 1


def test_the_signal_that_killed_an_app_is_named() -> None:
    with hosting("trouble") as (host, pid):
        threading.Timer(0.5, os.kill, (pid, 9)).start()
        with pytest.raises(AppFailedError, match="was ended by SIGKILL at work"):
            host.work(instruction(2, "sleep"))


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("raise OSError('no such disk')", "cannot be imported: OSError: no such disk"),
        ("import os; os._exit(4)", "ended with exit code 4 while it loaded"),
        ("app = 1", "is a int, expected a ClientApp"),
        ("", "Unable to load attribute app from module client"),
    ],
)
def test_an_app_that_cannot_be_loaded_says_why(module: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(module + "\n")
    (tmp_path / "pyproject.toml").write_text((APPS / "fedavg" / "pyproject.toml").read_text())
    host = ForeignHost(ForeignConfig(app=flower_adapter.read_app(tmp_path)))
    with pytest.raises(ConfigError, match=problem):
        host.prepare(pb.Welcome(node_id=7, run_id="run", run_json="{}"))
