"""Runs any Flower ClientApp in the link, in its own process, which is started again after a cancel or a crash.

The link sees a `Host` like fednc's own; the app sees what a SuperNode would give it. The state of its context is
kept here, as a SuperNode does, so that it survives the app's process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.app.user_config import UserConfig

from fednc.client.foreign.process import Setup
from fednc.client.link.work_hooks import CURRENT, AppFailedError, Hooks, WorkCancelledError
from fednc.common import flower_adapter
from fednc.common.errors import ConfigError
from fednc.common.flower_adapter import AppFolder
from fednc.common.process.app_pipe import AppProcess
from fednc.protos import federation_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class ForeignConfig:
    """A client's own settings."""

    app: AppFolder
    node_config: UserConfig = field(default_factory=dict)
    grace_s: float = 10.0  # between a cancel and the end of the app's process
    environment: Mapping[str, str] = field(default_factory=dict)  # of the process, added to ours


class ForeignHost:
    """A foreign ClientApp in the link."""

    def __init__(self, config: ForeignConfig) -> None:
        self._config = config
        self._setup: Setup | None = None
        self._state = RecordDict()
        self._process: _RunningApp | None = None

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

    def examples_having(self) -> Sequence[int]:
        """See Host."""
        return ()

    def work(self, message: Message) -> Message:
        """Answer one instruction.

        Raises:
            AppFailedError: the app raised, or its process ended. WorkCancelledError: the server no longer needs
            the work; a process that did not finish in time was killed.
        """
        process, hooks = self._running(), CURRENT.get()
        try:
            with process.ended_when_cancelled(hooks, self._config.grace_s):
                answer = process.answer(message, self._state)
        except (OSError, EOFError) as e:
            self._process = None
            how = process.end()
            if hooks.cancelled.is_set():
                raise WorkCancelledError("cancelled by the server") from e
            raise AppFailedError("AppProcessEnded", f"the app's process {how} at work") from e
        self._state = answer.state
        if answer.failure:
            raise AppFailedError(answer.failure.kind, answer.failure.reason, answer.failure.code)
        return flower_adapter.reply(message, answer.content, None)

    def leave(self) -> None:
        """End the app's process."""
        if self._process:
            self._process.end(self._config.grace_s)
            self._process = None

    def _running(self) -> _RunningApp:
        """The app's process; started again if the last one has ended."""
        assert self._setup is not None
        if self._process is None or not self._process.alive:
            self._process = _RunningApp(self._setup, self._config.environment)
        return self._process


class _RunningApp:
    """The client's side of `process.py`."""

    def __init__(self, setup: Setup, environment: Mapping[str, str]) -> None:
        self._process = AppProcess("fednc.client.foreign.process", environment)
        self._load(setup)

    def _load(self, setup: Setup) -> None:
        pipe = self._process.pipe
        try:
            pipe.send(setup.to_json())
            failure = pb.Failure.FromString(pipe.receive())
        except (OSError, EOFError) as e:
            how = self._process.end()
            raise ConfigError(f"the process of the app in {setup.folder} {how} while it loaded") from e
        if failure.kind:
            self._process.end()
            raise ConfigError(failure.reason)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.alive

    def end(self, grace_s: float = 1.0) -> str:
        """End the process; returns how it ended."""
        return self._process.end(grace_s)

    def ended_when_cancelled(self, hooks: Hooks, grace_s: float) -> AbstractContextManager[None]:
        """Kill the process `grace_s` after the work in the block was cancelled; the block then gets EOFError."""
        return self._process.ended_when(hooks.cancelled, grace_s)

    def answer(self, message: Message, state: RecordDict) -> _AppResult:
        """The app's answer to the message. Raises OSError, EOFError: the process is gone."""
        meta, pipe = message.metadata, self._process.pipe
        what = pb.AssignmentId(message_type=meta.message_type, group_id=meta.group_id)
        pipe.send(what.SerializeToString())
        pipe.send_content(message.content)
        pipe.send_content(state)
        failure = pb.Failure.FromString(pipe.receive())
        new_state = pipe.receive_content()
        return (
            _AppResult(new_state, failure) if failure.kind else _AppResult(new_state, None, pipe.receive_content())
        )


@dataclass(frozen=True)
class _AppResult:
    """The app's state after its work, and the content of its reply or the reason why there is none."""

    state: RecordDict
    failure: pb.Failure | None
    content: RecordDict = field(default_factory=RecordDict)
