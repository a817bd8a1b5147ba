"""The process of another person's Flower app, and the pipe to it. Used by the server for ServerApps and by the
client for ClientApps.

A frame is a length and that many bytes: protobuf headers, small JSON, raw arrays. Never pickle. The process is
spawned, never forked, because gRPC's threads do not survive a fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flwr.app import RecordDict

from fednc.common.waiting import Deadline, wait_until
from fednc.common.wire import records
from fednc.common.wire.arrays import Buffer
from fednc.protos import federation_pb2 as pb

_LENGTH = struct.Struct("<Q")
_POLL_S = 0.05
_BUFFER_BYTES = 1 << 20  # of the socket; the system may give less


class Pipe:
    """One end of the socket to the other process. Calls block; EOFError means that the other process is gone."""

    def __init__(self, end: socket.socket) -> None:
        end.set_inheritable(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        self._socket, self._incoming = end, end.makefile("rb")

    def send(self, *pieces: Buffer) -> None:
        """Send all pieces as one frame."""
        views = [memoryview(piece) for piece in pieces]
        self._socket.sendall(_LENGTH.pack(sum(view.nbytes for view in views)))
        for view in views:
            self._socket.sendall(view)

    def receive(self) -> bytes:
        """Receive the next frame."""
        return self.read(self.begin())

    def begin(self) -> int:
        """Size of the next frame; get its bytes with `read`."""
        (length,) = _LENGTH.unpack(self.read(_LENGTH.size))
        return int(length)

    def read(self, size: int) -> bytes:
        """Read the next bytes of a frame."""
        try:
            data = self._incoming.read(size)
        except ValueError as e:  # closed at this end
            raise EOFError("the pipe was closed") from e
        if len(data) < size:
            raise EOFError("the other end is gone")
        return data

    def send_json(self, value: Any) -> None:
        """Send a value as one frame."""
        self.send(json.dumps(value).encode())

    def receive_json(self) -> Any:
        """Receive a value from `send_json`."""
        return json.loads(self.receive())

    def send_content(self, content: RecordDict, encoded: bytes = b"") -> None:
        """Send a manifest (maybe `encoded` already), then every array. Raises ContentError before it sends."""
        self.send(encoded or records.encode(records.to_manifest(content, with_digests=False)))
        for array in records.arrays_of(content):
            self.send(array.data)

    def receive_content(self) -> RecordDict:
        """Receive from `send_content`. The arrays hold `bytes`, as apps expect."""
        manifest = pb.Manifest.FromString(self.receive())
        return records.from_manifest(manifest, iter(self.receive, None))

    def is_ready(self, timeout_s: float) -> bool:
        """Whether data arrives within `timeout_s`. Only valid if everything sent before has been read."""
        try:
            return bool(select.select([self._socket], [], [], timeout_s)[0])
        except ValueError as e:  # closed at this end
            raise EOFError("the pipe was closed") from e

    def await_hang_up(self) -> None:
        """Wait until the other end is gone, without reading."""
        hang_up = select.poll()
        hang_up.register(self._socket, select.POLLRDHUP)
        hang_up.poll()

    def close(self) -> None:
        """Close the pipe; the other end reads EOF."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # stops a thread that is reading
        self._incoming.close()
        self._socket.close()


class AppProcess:
    """A process that runs `python -m MODULE FD...` in its own session. Processes that it starts end with it."""

    def __init__(
        self, module: str, environment: Mapping[str, str] | None = None, handed: Collection[int] = ()
    ) -> None:
        """`handed`: further file descriptors to pass to it."""
        ours, theirs = socket.socketpair()
        fds = [theirs.fileno(), *handed]
        # -P: modules in the current folder must not hide the app's modules or ours
        command = [sys.executable, "-P", "-m", module, *map(str, fds)]
        with theirs:
            self._popen = subprocess.Popen(
                command,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        self.pipe = Pipe(ours)
        self._reaping = threading.Lock()
        threading.Thread(target=self._end_with_it, daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its process group."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs. Does not reap it: until it is reaped, no other process can get its group id."""
        if self._popen.returncode is not None:
            return False
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        with self._reaping:
            if self.alive:
                os.kill(self.pid, signal.SIGINT)

    def end(self, grace_s: float = 1.0, *, hang_up: bool = True) -> str:
        """Wait `grace_s` for it to end, then kill it and everything it has started. Returns how it ended.

        `hang_up`: close the pipe at once, which tells it to stop; otherwise it may finish its work first.
        """
        if hang_up:
            self.pipe.close()
        wait_until(lambda: not self.alive, Deadline(grace_s), _POLL_S)
        self.pipe.close()
        with self._reaping:
            self.kill()
            code = self._popen.wait()
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def kill(self) -> None:
        """Kill it and everything it has started."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _end_with_it(self) -> None:
        """Once it has ended, kill its workers. They would keep the pipe open and hide that it is gone."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._reaping:
            self.kill()

    @contextlib.contextmanager
    def ended_when(self, cancelled: threading.Event, grace_s: float) -> Iterator[None]:
        """Kill the process `grace_s` after the work in the block is cancelled; the block then gets EOFError."""
        done = threading.Event()

        def watch() -> None:
            wait_until(lambda: done.wait(_POLL_S) or cancelled.is_set(), Deadline(), every_s=0)
            if not done.wait(grace_s):
                self.kill()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
