"""The process that runs a foreign Flower ClientApp.

Started by `client/foreign/host.py` as `python -m fednc.client.foreign.process FD`; communicates over that socket
only, see `common/process/app_pipe.py`.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import threading
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp

from fednc.common import flower_adapter
from fednc.common.errors import ConfigError
from fednc.common.process.app_pipe import Pipe
from fednc.common.process.flower_env import quiet_flower
from fednc.common.wire import records
from fednc.protos import federation_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the process is told at its start."""

    folder: str
    run_id: str
    node_id: int
    node_config: UserConfig
    run_config: UserConfig

    def to_json(self) -> bytes:
        """As it is sent."""
        return json.dumps(vars(self)).encode()


@dataclass(frozen=True)
class Job:
    """One message for the app: its id, its content, and the app's state."""

    id: pb.AssignmentId
    content: RecordDict
    state: RecordDict


class ClientAppRunner:
    """Loads the app, then answers messages until the client hangs up."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._setup = Setup(**json.loads(pipe.receive()))
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()

    def run(self) -> None:
        """Answer messages; the reading thread ends the process."""
        setup = self._setup
        flower_adapter.adopt_identity(setup.run_id, setup.node_id)
        try:
            app = flower_adapter.read_app(Path(setup.folder)).load("clientapp")
            if not isinstance(app, ClientApp):
                raise ConfigError(
                    f"the clientapp of {setup.folder} is a {type(app).__name__}, expected a ClientApp"
                )
        except ConfigError as e:
            self._pipe.send(_failure(e).SerializeToString())
            return
        self._pipe.send(pb.Failure().SerializeToString())
        threading.Thread(target=self._read_jobs, daemon=True).start()
        for job in iter(self._jobs.get, None):
            self._run(app, job)

    def _read_jobs(self) -> NoReturn:
        """Read ahead in a thread, so that this process ends with its client even while the app is busy."""
        try:
            while True:
                work_id = pb.AssignmentId.FromString(self._pipe.receive())
                self._jobs.put(Job(work_id, self._pipe.receive_content(), self._pipe.receive_content()))
        finally:
            os._exit(0)

    def _run(self, app: ClientApp, job: Job) -> None:
        """Run the app and send its outcome. A reply or a state that cannot be sent is a failure."""
        context, outcome = self._context(job.state), _Outcome()
        try:
            reply = app(self._message(job), context)
            outcome = _refusal(reply) if reply.has_error() else _Outcome(content=_encoded(reply.content))
        except (Exception, SystemExit) as e:
            traceback.print_exc()
            outcome = _Outcome(_failure(e))
        try:
            state = _encoded(context.state)
        except ValueError as e:
            traceback.print_exc()
            problem = f"context.state cannot be kept, so the state before this message is: {e}"
            state, outcome = _encoded(job.state), _Outcome(pb.Failure(kind=type(e).__name__, reason=problem))
        self._pipe.send(outcome.failure.SerializeToString())
        for content in (state, outcome.content):
            if content:
                self._pipe.send_content(*content)

    def _message(self, job: Job) -> Message:
        setup, what = self._setup, job.id
        return flower_adapter.instruction(
            job.content,
            run_id=setup.run_id,
            dst=setup.node_id,
            message_type=what.message_type,
            group_id=what.group_id,
        )

    def _context(self, state: RecordDict) -> Context:
        setup = self._setup
        return Context(
            run_id=flower_adapter.run_number(setup.run_id),
            node_id=setup.node_id,
            node_config=dict(setup.node_config),
            state=state,
            run_config=dict(setup.run_config),
        )


_Encoded = tuple[RecordDict, bytes]


@dataclass(frozen=True)
class _Outcome:
    """A failure, or the content of a reply."""

    failure: pb.Failure = field(default_factory=pb.Failure)
    content: _Encoded | None = None


def _encoded(content: RecordDict) -> _Encoded:
    """Raises ContentError: it holds what cannot be sent."""
    return content, records.encode(records.to_manifest(content, with_digests=False))


def _failure(error: BaseException) -> pb.Failure:
    kind = type(error).__name__
    if kind in flower_adapter.TELLING and not isinstance(error, records.ContentError):
        kind = f"{kind}Raised"  # the app's own exception; its text is not sent
    return pb.Failure(kind=kind, reason=_sendable(str(error)))


def _refusal(reply: Message) -> _Outcome:
    """The error that the app returned. Raises ValueError: its code is not an int32."""
    return _Outcome(
        pb.Failure(
            kind=flower_adapter.APP_ERROR, code=reply.error.code, reason=_sendable(reply.error.reason or "")
        )
    )


def _sendable(text: str) -> str:
    return text.encode(errors="replace").decode()


if __name__ == "__main__":
    quiet_flower()
    ClientAppRunner(Pipe(socket.socket(fileno=int(sys.argv[1])))).run()
