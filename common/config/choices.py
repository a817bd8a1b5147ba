"""Keys of the run file whose values are not listed in the configuration: other rooms provide them.

Those rooms import the configuration, so that what they provide is named by its place, `module:name`, and imported
when the first run file is read. Knows none of the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from fednc.common.registry import Named, Registry

Entry = TypeVar("Entry", bound=Named)


class ReadOutNeeds(Named, Protocol):
    """What the configuration must know of a read-out (`common/learning/readout.py`)."""

    needs_head: ClassVar[bool]
    needs_vertices: ClassVar[bool]
    needs_memory: ClassVar[bool]
    needs_moments: ClassVar[bool]


def provided(place: str) -> Any:
    """The object at `module:name`, or the module where there is no name."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name) if name else import_module(module)


class OneOf(Generic[Entry]):
    """Annotates a key whose value is a name in a registry; the names' meanings are the key's description."""

    def __init__(self, place: str, *, before: str = "", after: str = "") -> None:
        """`before` and `after` stand around the entries' summaries in the description."""
        self._place, self._before, self._after = place, before, after

    @property
    def registry(self) -> Registry[Entry]:
        """All that the key can name."""
        found: Registry[Entry] = provided(self._place)
        return found

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Checks a value."""
        del source, handler
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """For docs/config.md."""
        del schema, handler
        told = [f"`{entry.name}`: {entry.summary}" for entry in self.registry]
        description = f"{self._before}{'; '.join(told)}{self._after}"
        return {"type": "string", "enum": list(self.registry.names()), "description": description}

    def _checked(self, value: Any) -> str:
        names = self.registry.names()
        if not isinstance(value, str) or value not in names:
            raise PydanticKnownError("literal_error", {"expected": listed([repr(name) for name in names])})
        return value


def listed(names: Sequence[str]) -> str:
    """'a', 'b' or 'c'."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
