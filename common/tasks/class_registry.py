"""Which class has which vertex of the frame. Names keep the order in which they came; none moves or goes away.

The task builds it from the run file, and class sessions extend it. Checkpoints contain it, so that a restarted
server continues with the same vertices. Must not know data: code that reads labels maps them by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from fednc.common.errors import ConfigError


@dataclass(frozen=True)
class ClassRegistry:
    """The classes of a run.

    Attributes:
        groups: names by class session; the first group is that of the first stage.
        vertices: number of vertices, including those reserved for later classes.
    """

    groups: tuple[tuple[str, ...], ...]
    vertices: int

    def __post_init__(self) -> None:
        """Raises ConfigError for duplicate names, or more names than vertices."""
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"class names {', '.join(map(repr, twice))} exist already: a class keeps its vertex for ever. "
                "Give a new class a new name, and leave old ones out of later sessions."
            )
        if len(self.names) > self.vertices:
            raise ConfigError(
                f"frame.vertices: {self.vertices} vertices for {len(self.names)} classes ({self.names[-1]!r} has "
                f"none). A frame cannot grow: start a run with frame.vertices = {len(self.names)} or more."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """All names; name i has vertex i."""
        return tuple(name for group in self.groups for name in group)

    @property
    def version(self) -> int:
        """Number of times that classes were added."""
        return len(self.groups) - 1

    def extended(self, names: Sequence[str]) -> ClassRegistry:
        """The next version: these classes get the next free vertices. Raises ConfigError, see `__post_init__`."""
        if not names:
            raise ConfigError("a class session needs at least one new class")
        return ClassRegistry((*self.groups, tuple(names)), self.vertices)

    def first(self, version: int) -> ClassRegistry:
        """The registry as of an earlier version."""
        return ClassRegistry(self.groups[: version + 1], self.vertices)

    def check_continues(self, older: ClassRegistry) -> None:
        """Raises ConfigError unless every class of `older` still has the same vertex."""
        if self.vertices != older.vertices:
            raise ConfigError(
                f"frame.vertices was {older.vertices} and is now {self.vertices}: a frame cannot change"
            )
        for vertex, name in enumerate(older.names):
            now = self.names[vertex] if vertex < len(self.names) else None
            if now != name:
                owner = "no class" if now is None else repr(now)
                raise ConfigError(
                    f"class {name!r} had vertex {vertex}, which now belongs to {owner}: "
                    "classes may be added, but not removed, renamed or moved"
                )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"vertices": self.vertices, "groups": [list(group) for group in self.groups]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The registry from the values of `to_json`."""
        return cls(tuple(tuple(group) for group in values["groups"]), values["vertices"])
