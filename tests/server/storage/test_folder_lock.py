"""One run folder, one server: the second one is refused before it touches anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fednc.common.errors import AddressError
from fednc.server.storage.folder_lock import claimed
from support.command_processes import ends, fednc, port_of, write_run


@pytest.mark.parametrize("listen", ["the same port", "another port"])
def test_a_second_server_leaves_the_folder_of_the_first_alone(listen: str, tmp_path: Path) -> None:
    run = write_run(tmp_path)
    first = fednc("server", run, "--folder", "r", cwd=tmp_path)
    try:
        port = port_of(tmp_path / "r")
        (tmp_path / "r" / "spool" / "upload").write_bytes(b"half received")
        events = (tmp_path / "r" / "events.jsonl").read_bytes()
        address = f"127.0.0.1:{port}" if listen == "the same port" else "127.0.0.1:0"
        code, said = ends(fednc("server", run, "--folder", "r", "--listen", address, cwd=tmp_path))
        assert code == AddressError.exit_code
        assert str(tmp_path / "r") in said
        assert f"process {first.pid}" in said
        assert "--folder" in said
        assert (tmp_path / "r" / "spool" / "upload").read_bytes() == b"half received"
        assert (tmp_path / "r" / "events.jsonl").read_bytes().startswith(events)
        assert (tmp_path / "r" / "starts").read_text() == "1"
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    with claimed(tmp_path / "r"):  # the lock went with the process
        pass


def test_the_lock_ends_with_its_holder_and_is_not_inherited(tmp_path: Path) -> None:
    with claimed(tmp_path):
        with pytest.raises(AddressError, match=f"process {os.getpid()}"), claimed(tmp_path):
            pass
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], close_fds=False)
    try:
        with claimed(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()
