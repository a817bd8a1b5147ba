"""The process that runs a foreign Flower ClientApp, and the pipe to it.

Started by `client/foreign.py` as `python -m fednc.client.app_process FD`; talks over that socket only. Frames are
a length and as many bytes: protobuf heads, JSON once at the start, arrays as they are. Never pickle.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import struct
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp

from fednc.common import flower, records
from fednc.common.errors import ConfigError
from fednc.common.flower_env import quiet_flower
from fednc.protos import federation_pb2 as pb

_LENGTH = struct.Struct("<Q")


class Pipe:
    """One end of the socket between a client and its app's process. Blocking; EOFError: the other is gone."""

    def __init__(self, end: socket.socket) -> None:
        self._socket, self._incoming = end, end.makefile("rb")

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """One frame."""
        self._socket.sendall(_LENGTH.pack(len(data)))
        self._socket.sendall(data)

    def receive(self) -> bytes:
        """The next frame."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return self._read(length)

    def send_content(self, content: RecordDict) -> None:
        """A manifest, then every array."""
        self.send(records.to_manifest(content, with_digests=False).SerializeToString())
        for array in records.arrays_of(content):
            self.send(array.data)

    def receive_content(self) -> RecordDict:
        """What `send_content` sent; the arrays hold `bytes`, as apps are used to."""
        manifest = pb.Manifest.FromString(self.receive())
        return records.from_manifest(manifest, iter(self.receive, None))

    def close(self) -> None:
        """Hang up; the other end reads EOF."""
        self._incoming.close()
        self._socket.close()

    def _read(self, size: int) -> bytes:
        data = self._incoming.read(size)
        if len(data) < size:
            raise EOFError("the other end is gone")
        return data


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a process is told once."""

    folder: str
    run_id: str
    node_id: int
    node_config: UserConfig
    run_config: UserConfig

    def to_json(self) -> bytes:
        """As it travels."""
        return json.dumps(vars(self)).encode()


@dataclass(frozen=True)
class Order:
    """One piece of work: what it is, its content, the app's state from before."""

    id: pb.AssignmentId
    content: RecordDict
    state: RecordDict


class AppProcess:
    """The child's side: loads the app, then answers orders until the client hangs up."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._setup = Setup(**json.loads(pipe.receive()))
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()

    def run(self) -> None:
        """Serve for ever; the reader ends the process."""
        setup = self._setup
        flower.adopt_identity(setup.run_id, setup.node_id)
        try:
            app = flower.read_app(Path(setup.folder)).load("clientapp")
            if not isinstance(app, ClientApp):
                raise ConfigError(f"the clientapp of {setup.folder} is a {type(app).__name__}, not a ClientApp")
        except ConfigError as e:
            self._pipe.send(_failure(e).SerializeToString())
            return
        self._pipe.send(pb.Failure().SerializeToString())
        threading.Thread(target=self._read_orders, daemon=True).start()
        for order in iter(self._orders.get, None):
            self._answer(app, order)

    def _read_orders(self) -> NoReturn:
        """Read ahead in a thread, so that this process ends with its client also while the app is busy."""
        try:
            while True:
                work_id = pb.AssignmentId.FromString(self._pipe.receive())
                self._orders.put(Order(work_id, self._pipe.receive_content(), self._pipe.receive_content()))
        finally:
            os._exit(0)

    def _answer(self, app: ClientApp, order: Order) -> None:
        context = self._context(order.state)
        try:
            reply = app(self._message(order), context)
            content = None if reply.has_error() else reply.content
            failure = pb.Failure() if content is not None else _refusal(reply)
        except (Exception, SystemExit) as e:
            traceback.print_exc()
            content, failure = None, _failure(e)
        self._pipe.send(failure.SerializeToString())
        if content is not None:
            self._pipe.send_content(content)
            self._pipe.send_content(context.state)

    def _message(self, order: Order) -> Message:
        setup, what = self._setup, order.id
        return flower.instruction(
            order.content, run_id=setup.run_id, dst=setup.node_id, message_type=what.message_type,
            group_id=what.group_id,
        )  # fmt: skip

    def _context(self, state: RecordDict) -> Context:
        setup = self._setup
        return Context(
            run_id=flower.run_number(setup.run_id),
            node_id=setup.node_id,
            node_config=dict(setup.node_config),
            state=state,
            run_config=dict(setup.run_config),
        )


def _failure(error: BaseException) -> pb.Failure:
    return pb.Failure(kind=type(error).__name__, reason=str(error))


def _refusal(reply: Message) -> pb.Failure:
    return pb.Failure(kind="AppError", code=reply.error.code, reason=reply.error.reason or "")


if __name__ == "__main__":
    quiet_flower()
    AppProcess(Pipe(socket.socket(fileno=int(sys.argv[1])))).run()
