"""Whatever happens to stdout and stderr, a command does its work and ends with its own exit code."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fednc.cli.sink import PatientSink, Sink
from fednc.common.errors import QuorumError
from support.command_processes import ends, fednc, write_run

F_SETPIPE_SZ, PIPE_BYTES = 1031, 4096


def full_pipe() -> tuple[int, int]:
    """A pipe that is full and that nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, PIPE_BYTES)
    os.write(writer, b"x" * PIPE_BYTES)
    return reader, writer


def gone_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("stream", ["full disk", "gone reader", "stuck reader", "closed"])
def test_a_server_serves_with_any_console(stream: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, wait_s=0.3)
    arguments = ("server", run, "--folder", "r")
    if stream == "closed":
        words = " ".join([sys.executable, "-m", "fednc.cli.start", *map(str, arguments)])
        process = subprocess.Popen(["sh", "-c", f"exec {words} >&- 2>&-"], cwd=tmp_path, text=True)
    else:
        reader = -1
        if stream == "full disk":
            writer = os.open("/dev/full", os.O_WRONLY)
        elif stream == "gone reader":
            writer = gone_reader()
        else:
            reader, writer = full_pipe()
        process = fednc(*arguments, cwd=tmp_path, stdout=writer, stderr=writer)
    code, _ = ends(process)
    assert code == QuorumError.exit_code
    kinds = (tmp_path / "r" / "events.jsonl").read_text()
    assert '"waiting"' in kinds, "it did its work"
    if stream != "closed":
        os.close(writer)
        if reader >= 0:
            os.close(reader)


def test_files_of_the_run_never_get_the_numbers_of_closed_streams(tmp_path: Path) -> None:
    program = (
        "import os, sys; from fednc.cli.sink import guard_console; guard_console();"
        f"handle = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY);"
        "os.write(2, b'what a library prints'); sys.exit(0 if handle > 2 else 1)"
    )
    done = subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "{program}" <&- >&- 2>&-'], cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_a_result_that_cannot_be_written_to_stdout_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with open("/dev/full", "w") as full:
        code, said = ends(fednc("check", run, "--json", "-", cwd=tmp_path, stdout=full))
    assert code == 2
    assert "No space left" in said
    assert "Traceback" not in said


def test_a_sink_keeps_order_and_reports_lost_text() -> None:
    reader, writer = os.pipe()
    sink = PatientSink(os.fdopen(writer, "w"))
    for number in range(500):
        sink.write(f"{number}\n")
    sink.drain()
    assert os.read(reader, 100_000).decode().split() == [str(number) for number in range(500)]
    assert sink.failed is None
    os.close(reader)
    sink.write("lost\n")
    sink.drain()
    assert isinstance(sink.failed, BrokenPipeError)


def test_a_forked_child_writes_without_the_thread() -> None:
    reader, writer = os.pipe()
    sink = PatientSink(os.fdopen(writer, "w"))
    pid = os.fork()
    if not pid:
        sink.write("child\n")
        Sink.flush(sink)
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"child\n"
