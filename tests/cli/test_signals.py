"""SIGTERM and SIGINT end a command: at once while it loads, later cleanly, in time even if a thread is stuck."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fednc.common.errors import EXIT_INTERRUPTED
from fednc.common.process.interrupt import run_until_interrupted
from support.command_processes import ends, fednc, port_of, wait_for, write_run
from support.local_servers import attending, is_ready, serving, until
from support.working_nodes import hand_out, node_of

# Like a network share that has gone away: the thread that reads it returns too late.
STUCK = {"FEDNC_TESTING": "1", "FEDNC_FAULT": "server.data:1:delay_ms=60000,client.data:1:delay_ms=60000"}


def test_a_server_ends_in_time_while_its_test_data_never_arrive(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    process = fednc("server", run, "--folder", "r", "--test-data", "digits", cwd=tmp_path, env=STUCK)
    wait_for(lambda: (tmp_path / "r" / "lock").exists())
    time.sleep(2)  # its imports are done by then; if not, it would end even sooner
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    code, said = ends(process, 15)
    assert code == EXIT_INTERRUPTED
    assert time.monotonic() - started < 8
    assert "Traceback" not in said


def test_a_client_ends_in_time_while_its_data_never_arrive(tmp_path: Path) -> None:
    server = fednc("server", write_run(tmp_path, more=""), "--folder", "r", cwd=tmp_path)
    try:
        address = f"127.0.0.1:{port_of(tmp_path / 'r')}"
        log = tmp_path / "client.log"
        with log.open("w") as stream:
            client = fednc(
                "client",
                "--server",
                address,
                "--data",
                "digits",
                "--stop-s",
                "1",
                cwd=tmp_path,
                env=STUCK,
                stderr=stream,
            )
        wait_for(lambda: "loading data" in log.read_text())
        time.sleep(0.5)
        client.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert ends(client, 15)[0] == EXIT_INTERRUPTED
        assert 0.8 < time.monotonic() - started < 6
        assert "did not end within 1 s" in log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.15, 0.6, 1.2])
def test_an_early_signal_ends_a_command_without_a_traceback(number: int, after_s: float, tmp_path: Path) -> None:
    process = fednc("client", "--server", "127.0.0.1:1", "--data", "digits", cwd=tmp_path)
    wait_for(lambda: is_handled(process.pid, number))
    time.sleep(after_s)
    process.send_signal(number)
    code, said = ends(process, 20)
    assert code == EXIT_INTERRUPTED
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said


def is_handled(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal, which the first process of a container needs."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    python_has_started = number == signal.SIGTERM or int(caught, 16) >> (signal.SIGTERM - 1) & 1
    return bool(int(caught, 16) >> (number - 1) & 1 and python_has_started)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as number 1 of a new namespace")
def test_the_first_process_of_a_container_handles_sigterm(tmp_path: Path) -> None:
    words = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "fednc.cli.start"]
    process = subprocess.Popen(
        [*words, "client", "--server", "127.0.0.1:1", "--data", "digits"], cwd=tmp_path, stderr=subprocess.PIPE
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        first = int(wait_for(lambda: children.read_text().split())[0])
        wait_for(lambda: is_handled(first, signal.SIGTERM))
        os.kill(first, signal.SIGTERM)
        assert process.wait(15) == EXIT_INTERRUPTED
    finally:
        process.kill()
        process.communicate()


def test_a_cut_call_at_the_end_is_not_reported_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        cut: asyncio.Future[None] = loop.create_future()
        cut.cancel()
        cut.add_done_callback(lambda future: future.result())
        broken: asyncio.Future[None] = loop.create_future()
        broken.set_exception(KeyError("a real one"))
        broken.add_done_callback(lambda future: future.result())
        await asyncio.sleep(0.01)

    run_until_interrupted(main())
    assert "CancelledError" not in caplog.text
    assert "a real one" in caplog.text


def test_work_sent_after_the_end_fails_at_once(tmp_path: Path) -> None:
    async def trial() -> None:
        async with serving(tmp_path, {}) as server, attending(server, "a", None):
            await until(is_ready(server, "a"))
            node = node_of(server, "a")
            server.federation.finish("the server was stopped", failed=True)
            await until(lambda: not node.is_here)
            reply = hand_out(server, "a").replies.get(timeout=1)
            assert reply.failure.kind == "RunOver"

    asyncio.run(trial())
