"""Which class has which vertex of the frame: names in the order in which they came, never moved, never removed.

Made from the run file by the task and grown by class sessions; kept in checkpoints, so that a restarted server
goes on with the same vertices. Must not know data: whoever reads labels maps them by name.
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
        groups: names by class session; the first group is there from the beginning.
        vertices: room for classes, those of later days included.
    """

    groups: tuple[tuple[str, ...], ...]
    vertices: int

    def __post_init__(self) -> None:
        """Raises ConfigError: a name that is there twice, or more names than vertices."""
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"class names {', '.join(map(repr, twice))} are there already: a class keeps its vertex for ever. "
                "Give a new class a name of its own, and leave old ones out of later sessions."
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
        """How often classes were added."""
        return len(self.groups) - 1

    def extended(self, names: Sequence[str]) -> ClassRegistry:
        """The next version, with these classes on the next free vertices. Raises ConfigError: clash, no room."""
        if not names:
            raise ConfigError("a class session brings at least one new class")
        return ClassRegistry((*self.groups, tuple(names)), self.vertices)

    def first(self, version: int) -> ClassRegistry:
        """How it was at an earlier version."""
        return ClassRegistry(self.groups[: version + 1], self.vertices)

    def check_continues(self, older: ClassRegistry) -> None:
        """Raises ConfigError unless every class of `older` has the vertex here that it had there."""
        if self.vertices != older.vertices:
            raise ConfigError(f"frame.vertices was {older.vertices} and is {self.vertices}: a frame cannot change")
        for vertex, name in enumerate(older.names):
            now = self.names[vertex] if vertex < len(self.names) else None
            if now != name:
                owner = "nobody" if now is None else repr(now)
                raise ConfigError(
                    f"class {name!r} had vertex {vertex}, which now is {owner}'s: "
                    "classes may be added, never removed, renamed or moved"
                )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"vertices": self.vertices, "groups": [list(group) for group in self.groups]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(tuple(tuple(group) for group in values["groups"]), values["vertices"])
