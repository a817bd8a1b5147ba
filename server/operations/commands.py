"""The commands that an operator may send to a run: one class each, registered by its field of `ControlRequest`.

The operator's client sends them, the servicer carries them out. A new command is a class here and a field in
operator.proto. Imports nothing heavy, because an operator's machine only sends commands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from fednc.common.errors import ConfigError
from fednc.protos import operator_pb2 as pb
from fednc.server.storage.events import OperatorCommand

if TYPE_CHECKING:
    from fednc.server.link.federation import Federation
    from fednc.server.rounds.control import RunControl

COMMANDS: dict[str, type[Command]] = {}  # field of ControlRequest: its class; filled as the classes are defined
_NAMED = 20  # most names listed in an error message


class UnknownNodeError(ConfigError):
    """There is no node of that name."""


@dataclass(frozen=True)
class Served:
    """The run that a command is for, and the operator who sent it."""

    federation: Federation
    control: RunControl
    operator: str

    def note(self, command: Command, text: str, classes: tuple[str, ...] | None = None) -> None:
        """Record that the command was carried out."""
        event = OperatorCommand(text=text, command=command.field, operator=self.operator, classes=classes)
        self.federation.events.emit(event)


@dataclass(frozen=True)
class Command(ABC):
    """One command. Its fields are those of its message in operator.proto."""

    field: ClassVar[str] = ""

    def __init_subclass__(cls, *, field: str) -> None:
        cls.field = field
        COMMANDS[field] = cls

    def to_request(self) -> pb.ControlRequest:
        """The message to send."""
        message: dict[str, Any] = {self.field: {each.name: getattr(self, each.name) for each in fields(self)}}
        return pb.ControlRequest(**message)

    @classmethod
    def of_message(cls, message: Any) -> Command:
        """The command in a received message."""
        values = {each.name: getattr(message, each.name) for each in fields(cls)}
        return cls(**{name: value if isinstance(value, str) else tuple(value) for name, value in values.items()})

    @abstractmethod
    def obey(self, served: Served) -> None:
        """Carry out the command; called on the event loop.

        Raises:
            ConfigError: the operator named something that cannot be used.
            WrongMomentError: the command does not fit the state of the run.
            OSError: it is done, but will be lost at a restart.
        """


@dataclass(frozen=True)
class PauseRun(Command, field="pause"):
    """Finish the current round, then wait before the next one."""

    def obey(self, served: Served) -> None:
        """See Command."""
        served.control.pause()
        served.note(self, f"{served.operator} pauses the run: the next round waits")


@dataclass(frozen=True)
class ResumeRun(Command, field="resume"):
    """Continue a paused run."""

    def obey(self, served: Served) -> None:
        """See Command."""
        served.control.resume()
        served.note(self, f"{served.operator} resumes the run")


@dataclass(frozen=True)
class StopRun(Command, field="stop"):
    """Finish the current round, then end the run and write its files."""

    def obey(self, served: Served) -> None:
        """See Command."""
        served.control.stop()
        served.note(self, f"{served.operator} stops the run after the current round")


@dataclass(frozen=True)
class DropNode(Command, field="drop"):
    """Disconnect a node and refuse it until it is readmitted."""

    node: str

    def obey(self, served: Served) -> None:
        """See Command."""
        roster = served.federation.roster
        found = roster.by_name(self.node)
        if found is None:
            known = _some([each.name for each in roster.nodes()])
            raise UnknownNodeError(f"the server has never seen a node {self.node!r:.80}; it knows: {known}")
        served.federation.door.drop(found, f"dropped by {served.operator}")


@dataclass(frozen=True)
class ReadmitNode(Command, field="readmit"):
    """Let a node attend again that was dropped by an operator or quarantined by the server."""

    node: str

    def obey(self, served: Served) -> None:
        """See Command."""
        door = served.federation.door
        if not door.readmit(self.node, served.operator):
            out = _some([*door.dropped, *door.quarantined])
            raise UnknownNodeError(f"{self.node!r:.80} is neither dropped nor quarantined; these are: {out}")


@dataclass(frozen=True)
class StartSession(Command, field="next_session"):
    """Start the session that waits for an operator; `classes` are needed if the run file names none for it."""

    classes: tuple[str, ...] = ()

    def obey(self, served: Served) -> None:
        """See Command."""
        number = served.control.start_session(self.classes)
        served.note(self, f"{served.operator} starts session {number}", self.classes)


def _some(names: list[str]) -> str:
    """The first few names (there may be ten thousand): a gRPC status must fit into an HTTP header."""
    shown = ", ".join(names[:_NAMED]) or "none"
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
