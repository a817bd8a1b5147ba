"""A registry of implementations by name, one class each. A key of the run file chooses one of them.

Used for read-outs and for codecs. Must not know any of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Generic, Protocol, TypeVar

from fednc.common.errors import ConfigError


class Named(Protocol):
    """What every entry must define."""

    name: ClassVar[str]  # its value in the run file
    summary: ClassVar[str]  # description for docs/config.md


Entry = TypeVar("Entry", bound=Named)


class Registry(Generic[Entry]):
    """The possible values of one key of the run file, in the order of their registration.

    Attributes:
        key: the key, for example `link.codec`.
        entries: one instance of each registered class, by name.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.entries: dict[str, Entry] = {}

    def register(self, entry: type[Entry]) -> type[Entry]:
        """Class decorator that adds an instance of the class. Raises ValueError if the name is taken."""
        if entry.name in self.entries:
            raise ValueError(f"{self.key} = {entry.name!r} is registered twice")
        self.entries[entry.name] = entry()
        return entry

    def names(self) -> tuple[str, ...]:
        """The possible values of the key."""
        return tuple(self.entries)

    def get(self, name: str) -> Entry:
        """The entry called `name`. Raises ConfigError if there is none."""
        if name not in self.entries:
            raise ConfigError(
                f"{self.key}: {name!r:.80} is not known here; choose one of {', '.join(self.names())}"
            )
        return self.entries[name]

    def __iter__(self) -> Iterator[Entry]:
        """The entries in order."""
        return iter(self.entries.values())
