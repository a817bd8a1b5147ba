"""What an operator may ask of a run: one class per command, registered by its field of `ControlRequest`.

The operator's client sends them, the servicer obeys them; a new command is a class here and a field in
operator.proto. Imports nothing heavy, for an operator's machine only sends.
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
_NAMED = 20  # names in a reason


class UnknownNodeError(ConfigError):
    """No node of that name is meant."""


@dataclass(frozen=True)
class Served:
    """The run that a command is for, and who asks."""

    federation: Federation
    control: RunControl
    operator: str

    def note(self, command: Command, text: str, classes: tuple[str, ...] | None = None) -> None:
        """Record that the command is obeyed."""
        event = OperatorCommand(text=text, command=command.field, operator=self.operator, classes=classes)
        self.federation.events.emit(event)


@dataclass(frozen=True)
class Command(ABC):
    """One thing that may be asked of a run. Its fields are those of its message in operator.proto."""

    field: ClassVar[str] = ""

    def __init_subclass__(cls, *, field: str) -> None:
        cls.field = field
        COMMANDS[field] = cls

    def to_request(self) -> pb.ControlRequest:
        """As it travels."""
        return pb.ControlRequest(**{self.field: {each.name: getattr(self, each.name) for each in fields(self)}})

    @classmethod
    def of_message(cls, message: Any) -> Command:
        """What travelled."""
        values = {each.name: getattr(message, each.name) for each in fields(cls)}
        return cls(**{name: value if isinstance(value, str) else tuple(value) for name, value in values.items()})

    @abstractmethod
    def obey(self, served: Served) -> None:
        """Do what is asked; called on the event loop.

        Raises:
            ConfigError: what the operator names cannot be used.
            WrongMomentError: it does not fit where the run stands.
            OSError: it is done, but a restart will forget it.
        """


@dataclass(frozen=True)
class PauseRun(Command, field="pause"):
    """The round under way is finished, the next one waits."""

    def obey(self, served: Served) -> None:
        """See Command."""
        served.control.pause()
        served.note(self, f"{served.operator} pauses the run: the next round waits")


@dataclass(frozen=True)
class ResumeRun(Command, field="resume"):
    """A paused run goes on."""

    def obey(self, served: Served) -> None:
        """See Command."""
        served.control.resume()
        served.note(self, f"{served.operator} lets the run go on")


@dataclass(frozen=True)
class StopRun(Command, field="stop"):
    """The round under way is finished, then the run ends with its files written."""

    def obey(self, served: Served) -> None:
        """See Command."""
        served.control.stop()
        served.note(self, f"{served.operator} stops the run: no round after the one under way")


@dataclass(frozen=True)
class DropNode(Command, field="drop"):
    """A node's session ends; it is refused until it is readmitted."""

    node: str

    def obey(self, served: Served) -> None:
        """See Command."""
        roster = served.federation.roster
        found = roster.by_name(self.node)
        if found is None:
            known = _some([each.name for each in roster.nodes()])
            raise UnknownNodeError(f"no node {self.node!r:.80} was ever here; there were: {known}")
        served.federation.door.drop(found, f"dropped by {served.operator}")


@dataclass(frozen=True)
class ReadmitNode(Command, field="readmit"):
    """A node that was dropped, or that the server put into quarantine, may attend again."""

    node: str

    def obey(self, served: Served) -> None:
        """See Command."""
        door = served.federation.door
        if not door.readmit(self.node, served.operator):
            out = _some([*door.dropped, *door.quarantined])
            raise UnknownNodeError(f"{self.node!r:.80} is not shut out; those who are: {out}")


@dataclass(frozen=True)
class StartSession(Command, field="next_session"):
    """The session that waits for an operator begins, with classes of these names where the run file has none."""

    classes: tuple[str, ...] = ()

    def obey(self, served: Served) -> None:
        """See Command."""
        number = served.control.start_session(self.classes)
        served.note(self, f"{served.operator} starts session {number}", self.classes)


def _some(names: list[str]) -> str:
    """The first names, of what may be ten thousand: a status's text has to fit into a header."""
    shown = ", ".join(names[:_NAMED]) or "nobody"
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
