"""A foreign Flower app's process, and the pipe to it: how the server runs a ServerApp, and a client a ClientApp.

Frames are a length and as many bytes: protobuf heads, small JSON, arrays as they are. Never pickle. The process is
started anew and never forked: gRPC's threads would not survive that.
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
    """One end of the socket to the other process. Blocking; EOFError: the other is gone."""

    def __init__(self, end: socket.socket) -> None:
        end.set_inheritable(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        self._socket, self._incoming = end, end.makefile("rb")

    def send(self, *pieces: Buffer) -> None:
        """One frame of all pieces."""
        views = [memoryview(piece) for piece in pieces]
        self._socket.sendall(_LENGTH.pack(sum(view.nbytes for view in views)))
        for view in views:
            self._socket.sendall(view)

    def receive(self) -> bytes:
        """The next frame."""
        return self.read(self.begin())

    def begin(self) -> int:
        """Size of the next frame, whose bytes are for `read`."""
        (length,) = _LENGTH.unpack(self.read(_LENGTH.size))
        return int(length)

    def read(self, size: int) -> bytes:
        """The next bytes of a frame."""
        try:
            data = self._incoming.read(size)
        except ValueError as e:  # it was closed at this end
            raise EOFError("the pipe was closed") from e
        if len(data) < size:
            raise EOFError("the other end is gone")
        return data

    def send_json(self, value: Any) -> None:
        """One frame."""
        self.send(json.dumps(value).encode())

    def receive_json(self) -> Any:
        """What `send_json` sent."""
        return json.loads(self.receive())

    def send_content(self, content: RecordDict, encoded: bytes = b"") -> None:
        """A manifest, which may be `encoded` already, then every array. Raises ContentError before it sends."""
        self.send(encoded or records.encode(records.to_manifest(content, with_digests=False)))
        for array in records.arrays_of(content):
            self.send(array.data)

    def receive_content(self) -> RecordDict:
        """What `send_content` sent; the arrays hold `bytes`, as apps are used to."""
        manifest = pb.Manifest.FromString(self.receive())
        return records.from_manifest(manifest, iter(self.receive, None))

    def is_ready(self, timeout_s: float) -> bool:
        """Whether something comes within `timeout_s`. For one who has read all of what was sent before."""
        try:
            return bool(select.select([self._socket], [], [], timeout_s)[0])
        except ValueError as e:  # it was closed at this end
            raise EOFError("the pipe was closed") from e

    def await_hang_up(self) -> None:
        """Return when the other end is gone. Reads nothing."""
        hang_up = select.poll()
        hang_up.register(self._socket, select.POLLRDHUP)
        hang_up.poll()

    def close(self) -> None:
        """Hang up; the other end reads EOF."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # a thread that is reading stops
        self._incoming.close()
        self._socket.close()


class AppProcess:
    """A process that runs `python -m MODULE FD...`, in a session of its own; all that it starts ends with it."""

    def __init__(
        self, module: str, environment: Mapping[str, str] | None = None, handed: Collection[int] = ()
    ) -> None:
        """`handed`: files that it gets beside the pipe."""
        ours, theirs = socket.socketpair()
        fds = [theirs.fileno(), *handed]
        # -P: the folder where we were started must not hide the app's modules, nor they ours
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
        """Its process id, which is that of its group too."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Not reaped here: as long as it is not, its process group is nobody else's."""
        if self._popen.returncode is not None:
            return False
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        with self._reaping:
            if self.alive:
                os.kill(self.pid, signal.SIGINT)

    def end(self, grace_s: float = 1.0, *, hang_up: bool = True) -> str:
        """End by force what is left after `grace_s`, with whatever it has started. How did it end?

        `hang_up`: it is told at once that nobody is there any more, else it has the time to end by itself.
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
        """End it, and all that it has started, at once."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _end_with_it(self) -> None:
        """Workers that outlive it would keep the pipe open, and nobody would see that it is gone."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._reaping:
            self.kill()

    @contextlib.contextmanager
    def ended_when(self, cancelled: threading.Event, grace_s: float) -> Iterator[None]:
        """End the process `grace_s` after the work in the block was cancelled; the block then sees EOF."""
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
