"""Runs any Flower ClientApp inside the link, in a process of its own that survives neither a cancel nor a crash.

The link sees a `Host` like fednc's own; the app sees what a SuperNode would give it. Its context's state is kept
here, as a SuperNode does, so that a process that ended takes nothing of earlier rounds with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.app.user_config import UserConfig

from fednc.client.app_process import Pipe, Setup
from fednc.client.hooks import CURRENT, AppFailedError, CancelledError, Hooks
from fednc.common import flower
from fednc.common.errors import ConfigError
from fednc.common.flower import AppFolder
from fednc.protos import federation_pb2 as pb

_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class ForeignConfig:
    """What a client brings of its own."""

    app: AppFolder
    node_config: UserConfig = field(default_factory=dict)
    grace_s: float = 10.0  # between a cancel and the end of the app's process
    environment: Mapping[str, str] = field(default_factory=dict)  # of the process, beside ours


class ForeignHost:
    """A foreign ClientApp in the link."""

    def __init__(self, config: ForeignConfig) -> None:
        self._config = config
        self._setup: Setup | None = None
        self._state = RecordDict()
        self._process: _Process | None = None

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        """Start the app's process. Raises ConfigError: the app cannot be loaded."""
        self.leave()
        self._setup = Setup(
            folder=str(self._config.app.path),
            run_id=welcome.run_id,
            node_id=welcome.node_id,
            node_config=dict(self._config.node_config),
            run_config=json.loads(welcome.run_json),
        )
        self._state = RecordDict()
        return pb.Declaration(device=f"app {self._config.app.id}"[:200], pid=self._running().pid)

    def work(self, message: Message) -> Message:
        """Answer one instruction.

        Raises:
            AppFailedError: the app raised, or its process ended.
            CancelledError: the server does not wait any more; a process that did not finish in time was ended.
        """
        process, hooks = self._running(), CURRENT.get()
        try:
            with process.ended_when_cancelled(hooks, self._config.grace_s):
                content, self._state = process.answer(message, self._state)
        except (OSError, EOFError) as e:
            self._process = None
            how = process.end()
            if hooks.cancelled.is_set():
                raise CancelledError("cancelled by the server") from e
            raise AppFailedError("AppProcessEnded", f"the app's process {how} at work") from e
        return flower.reply(message, content, None)

    def leave(self) -> None:
        """End the app's process."""
        if self._process:
            self._process.end(self._config.grace_s)
            self._process = None

    def _running(self) -> _Process:
        """The app's process, started anew where the last one ended."""
        assert self._setup is not None
        if self._process is None or not self._process.alive:
            self._process = _Process(self._setup, self._config.environment)
        return self._process


class _Process:
    """The client's side of `app_process.py`."""

    def __init__(self, setup: Setup, environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        # -P: the folder where the client was started must not hide the app's modules, nor they ours
        command = [sys.executable, "-P", "-m", "fednc.client.app_process", str(theirs.fileno())]
        with theirs:
            self._popen = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, **environment},
            )  # fmt: skip
        self._pipe = Pipe(ours)
        self._load(setup)

    def _load(self, setup: Setup) -> None:
        try:
            self._pipe.send(setup.to_json())
            failure = pb.Failure.FromString(self._pipe.receive())
        except (OSError, EOFError) as e:
            raise ConfigError(f"the process of the app in {setup.folder} {self.end()} while it loaded") from e
        if failure.kind:
            self.end()
            raise ConfigError(failure.reason)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Not reaped here: as long as it is not, its process group is nobody else's."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def answer(self, message: Message, state: RecordDict) -> tuple[RecordDict, RecordDict]:
        """(content of the reply, new state). Raises AppFailedError, OSError, EOFError."""
        meta = message.metadata
        what = pb.AssignmentId(message_type=meta.message_type, group_id=meta.group_id)
        self._pipe.send(what.SerializeToString())
        self._pipe.send_content(message.content)
        self._pipe.send_content(state)
        failure = pb.Failure.FromString(self._pipe.receive())
        if failure.kind:
            raise AppFailedError(failure.kind, failure.reason, failure.code)
        return self._pipe.receive_content(), self._pipe.receive_content()

    @contextlib.contextmanager
    def ended_when_cancelled(self, hooks: Hooks, grace_s: float) -> Iterator[None]:
        """End the process `grace_s` after the work in the block was cancelled; the block then sees EOF."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_POLL_S):
                if hooks.cancelled.is_set():
                    if not done.wait(grace_s):
                        self._kill()
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def end(self, grace_s: float = 1.0) -> str:
        """Hang up; end by force what is left after `grace_s`, with whatever it has started. How did it end?"""
        self._pipe.close()
        give_up = time.monotonic() + grace_s
        while self.alive and time.monotonic() < give_up:
            time.sleep(_POLL_S)
        self._kill()
        code = self._popen.wait()
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
