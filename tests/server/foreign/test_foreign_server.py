"""A foreign ServerApp's process: how it loads and waits, every way it can end, and what its grid answers."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fednc.common import flower_adapter
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError, ProtocolError, QuorumError, RunFailedError
from fednc.common.process.app_pipe import AppProcess
from fednc.common.wire import records
from fednc.protos import federation_pb2 as pb
from fednc.server import foreign_app
from fednc.server.foreign import reply_limits
from fednc.server.foreign.mailbox import Arrival, Mailbox, Sent
from fednc.server.foreign.pipe_grid import _PipeParcel
from fednc.server.link.assignments import Batch, Content, Reply, Work
from fednc.server.link.message_limits import InvalidError
from fednc.server.link.nodes import Node
from fednc.server.link.upload_budget import Intake, Slot
from fednc.server.storage.event_log import EventLog

PROJECT = """
[project]
name = "small"
version = "1"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "place:app"
clientapp = "place:app"
[tool.flwr.app.config]
number = 3
"""
HEAD = """
import os, signal, sys, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
"""
MIB = 1 << 20


def app_of(folder: Path, code: str) -> flower_adapter.AppFolder:
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "place.py").write_text(code)
    return flower_adapter.read_app(folder)


def settings(min_clients: int = 0, **rounds: Any) -> RunConfig:
    run = parse_run({"server": {"listen": "127.0.0.1:0"}, "rounds": {"min_clients": 1, **rounds}})
    return run.model_copy(update={"rounds": run.rounds.model_copy(update={"min_clients": min_clients})})


def run_app(folder: Path, code: str, run: RunConfig | None = None) -> dict[str, Any]:
    app, place = app_of(folder, code), folder / "run"
    place.mkdir()
    return asyncio.run(foreign_app.run_app(app, [], run or settings(), place, EventLog(place / "events.jsonl")))


def main_of(*lines: str) -> str:
    return HEAD + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "process was ended by SIGSEGV before the app was done"),
        ("os._exit(0)", "process ended with exit code 0 before the app was done"),
        ("1 / 0", "the ServerApp raised ZeroDivisionError: division by zero"),
        ("sys.exit('had enough')", "the ServerApp raised SystemExit: had enough"),
        ("grid.push_messages([Message(RecordDict({'c': ConfigRecord({'x': 2**64})}), 1, 'query')])", "'x': Value"),
    ],
)
def test_the_end_of_an_app_is_an_error_with_its_reason(line: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=problem):
        run_app(tmp_path, main_of(line))
    assert psutil.Process().children() == []


def test_an_app_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    for name, code, problem in [
        ("raises", "raise OSError('no such disk')", "OSError: no such disk"),
        ("other", "app = 1", "is a int, not a ServerApp"),
        ("leaves", "import os; os._exit(4)", "ended with exit code 4 while it loaded"),
    ]:
        (tmp_path / name).mkdir()
        with pytest.raises(ConfigError, match=problem):
            run_app(tmp_path / name, code)


def test_an_app_starts_when_enough_nodes_are_connected_and_not_before(tmp_path: Path) -> None:
    with pytest.raises(QuorumError, match=r"0 of 1 clients are ready after 0.3 s.*--nodes"):
        run_app(tmp_path, main_of("open('started', 'w')"), settings(1, wait_s=0.3))
    assert not Path("started").exists()


def test_the_grid_answers_for_unknown_nodes_and_messages(tmp_path: Path) -> None:
    code = main_of(
        "seen = [grid.get_node_ids(), list(grid.get_nodes()), list(grid.send_and_receive([]))]",
        "question = Message(RecordDict(), 77, 'query')",
        "[reply] = grid.send_and_receive([question])",
        "seen += [reply.error.code, reply.metadata.reply_to_message_id == question.metadata.message_id != '']",
        "[unknown] = grid.pull_messages(['no such message'])",
        "seen += [unknown.error.code, context.run_config['number']]",
        "import json; from pathlib import Path",
        f"Path({str(tmp_path / 'seen')!r}).write_text(json.dumps(seen))",
    )
    summary = run_app(tmp_path, code)
    assert json.loads((tmp_path / "seen").read_text()) == [[], [], [], 5, True, 3, 3]
    assert (summary["app"], summary["model"]) == ("small/1", "")


def test_an_app_may_end_its_workers_and_hold_the_interpreter(tmp_path: Path) -> None:
    """Stock Flower's signal handlers would take this for the end of the run; here it is up to the app."""
    code = main_of(
        "import multiprocessing, re",
        "with multiprocessing.Pool(2) as pool:",
        "    squares = pool.map(abs, range(-5, 0))",
        "worker = multiprocessing.Process(target=signal.pause)",
        "worker.start(); worker.terminate(); worker.join()",
        "re.match('(a+)+$', 'a' * 25 + 'b')",  # seconds within one bytecode instruction
        f"open({str(tmp_path / 'seen')!r}, 'w').write(f'{{squares}} {{worker.exitcode}} {{grid.get_node_ids()}}')",
    )
    run_app(tmp_path, code)
    assert (tmp_path / "seen").read_text() == "[5, 4, 3, 2, 1] -15 []"


def test_an_interrupted_server_ends_the_app_and_its_children(tmp_path: Path) -> None:
    code = main_of(
        "import subprocess",
        "worker = subprocess.Popen(['sleep', '600'])",
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{worker.pid}} ')",
        "try:",
        "    time.sleep(600)",
        "finally:",
        f"    open({str(tmp_path / 'tidied')!r}, 'w').close()",
    )

    async def interrupted() -> None:
        place = tmp_path / "run"
        place.mkdir()
        running = asyncio.ensure_future(
            foreign_app.run_app(app_of(tmp_path, code), [], settings(), place, EventLog(None))
        )
        while not ((tmp_path / "pids").exists() and (tmp_path / "pids").read_text().endswith(" ")):
            assert not running.done()
            await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(interrupted())
    assert (tmp_path / "tidied").exists(), "the app had no time to clean up"
    assert not any(map(is_alive, map(int, (tmp_path / "pids").read_text().split())))


def is_alive(pid: int) -> bool:
    """A zombie does not count as alive."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_process_ends_when_its_parent_is_gone() -> None:
    process = AppProcess("fednc.server.foreign.process", handed=[0])
    process.pipe.close()
    give_up = time.monotonic() + 30
    while process.alive and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not process.alive
    process.end()


# ---- waiting replies -----------------------------------------------------------------------------------------


async def arrival(intake: Intake, number: int, size: int) -> Arrival:
    node = Node("a", 7)
    manifest = pb.Manifest(packed=pb.Packed(size=size))
    work = Work(pb.AssignmentId(ordinal=number), node, None, Content(manifest), Batch())  # type: ignore[arg-type]
    slot = Slot()
    _, upload = await intake.open(slot, bytes(8), size)
    upload.append(bytes(size))
    return Arrival(Sent(str(number), 7, "query", ""), Reply(work, manifest, intake.hand_over(slot)))


def test_replies_that_nobody_pulls_give_way_to_newer_ones(tmp_path: Path) -> None:
    asyncio.run(replies_that_nobody_pulls_give_way_to_newer_ones(tmp_path))


async def replies_that_nobody_pulls_give_way_to_newer_ones(tmp_path: Path) -> None:
    dropped: list[tuple[str, int, int]] = []
    intake = Intake(tmp_path / "spool", MIB)
    mailbox = Mailbox(intake, 8 * MIB, lambda *what: dropped.append(what))
    for number in range(20):  # each larger than the budget; none waits for another
        mailbox.put(await asyncio.wait_for(arrival(intake, number, 2 * MIB), 5))
    assert dropped == [("a", 2 * MIB, 8 * MIB)] * 16
    assert intake.budget.used_bytes == 0
    assert len(list((tmp_path / "spool").iterdir())) == 4
    assert mailbox.news() == [str(number) for number in range(20)]
    old, new = mailbox.take("3"), mailbox.take("19")
    assert old
    assert old.failure
    assert "was dropped for newer ones" in old.failure.reason
    assert new
    assert new.reply
    assert new.reply.slot.upload
    assert bytes(new.reply.slot.upload.take([2 * MIB])[0]) == bytes(2 * MIB)
    assert mailbox.take("19") is None
    mailbox.close()
    assert list((tmp_path / "spool").iterdir()) == []


def test_one_reply_larger_than_the_limit_of_waiting_replies_waits(tmp_path: Path) -> None:
    asyncio.run(one_reply_that_is_larger_than_all_that_may_wait_waits(tmp_path))


async def one_reply_that_is_larger_than_all_that_may_wait_waits(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "spool", MIB)
    mailbox = Mailbox(intake, MIB, lambda *_: None)
    mailbox.put(await arrival(intake, 1, 3 * MIB))
    kept = mailbox.take("1")
    assert kept
    assert kept.failure is None
    mailbox.close()


# ---- limits and packing --------------------------------------------------------------------------------------


def header(manifest: pb.Manifest) -> pb.UploadHeader:
    return pb.UploadHeader(upload_id=bytes(8), manifest=manifest)


def test_a_reply_larger_than_the_budget_passes_and_the_limit_is_named_with_its_key() -> None:
    reply_limits.check_header(header(pb.Manifest(packed=pb.Packed(size=1 << 20, array_bytes=7 * MIB))), MIB)
    too_large = header(pb.Manifest(packed=pb.Packed(size=2 * MIB, array_bytes=7 * MIB)))
    with pytest.raises(reply_limits.TooLargeError, match=r"9 MiB; at most 8 MiB .* server.ingest_mib = 1: raise"):
        reply_limits.check_header(too_large, MIB)
    wordy = records.to_manifest(RecordDict({"c": ConfigRecord({"x": "x" * MIB})}), with_digests=False)
    with pytest.raises(InvalidError, match="unless packed"):
        reply_limits.check_header(header(wordy), MIB)


def test_large_values_outside_arrays_are_packed_and_unpacked() -> None:
    content = RecordDict({"c": ConfigRecord({"raw": bytes(MIB)}), "a": ArrayRecord([np.arange(5)])})
    manifest = records.to_manifest(content, with_digests=True)
    small, data = records.pack(manifest, with_digest=True)
    assert small.ByteSize() < 100
    assert records.bulk_bytes(small) == len(data) + records.bulk_bytes(manifest)
    assert records.unpack(small, data) == manifest
    small.packed.array_bytes += 1
    with pytest.raises(ProtocolError, match="another size than it announces"):
        records.unpack(small, data)
    with pytest.raises(ProtocolError, match="cannot be read"):
        records.unpack(small, b"\xff\xff")


def test_a_content_for_many_nodes_goes_over_the_pipe_once_and_up_to_date() -> None:
    flower_adapter.adopt_identity("run")
    content = RecordDict({"a": ArrayRecord([np.zeros(1000)])})
    parcel = _PipeParcel([Message(content, node, "train") for node in range(9)])
    assert (len(parcel.manifests), len(parcel.blobs), len(parcel.call["messages"])) == (1, 1, 9)
    array = content["a"]["0"]
    for data in (Array(np.ones(1000)).data, bytearray(array.data), bytearray(Array(np.ones(1000)).data)):
        array.data = data
        assert list(_PipeParcel([Message(content, 1, "train")]).blobs.values()) == [bytes(data)]


def test_changed_code_changes_the_fingerprint_and_changed_data_does_not(tmp_path: Path) -> None:
    app = app_of(tmp_path, "app = 1\n")
    before = app.code
    for name in ("notes.txt", ".venv/a.py", "__pycache__/place.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "place.py").write_bytes(b"app = 1\r\n")
    assert app.code == before
    (tmp_path / "place.py").write_text("app = 2\n")
    assert app.code != before
