"""Keys of the run file whose possible values come from other rooms, such as read-outs and codecs.

Those rooms import the configuration, so it cannot import them. It names what they provide as `module:name`, which
is imported when the first run file is read. Knows none of the values.
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
    """What the configuration must know about a read-out (`common/learning/readout.py`)."""

    needs_head: ClassVar[bool]
    needs_vertices: ClassVar[bool]
    needs_memory: ClassVar[bool]
    needs_moments: ClassVar[bool]
    needs_ridge: ClassVar[bool]
    reads_any_space: ClassVar[bool]


def provided(place: str) -> Any:
    """The object at `module:name`, or the module if there is no name."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name) if name else import_module(module)


class OneOf(Generic[Entry]):
    """Annotates a key whose value is a name in a registry. The entries' summaries become the key's description."""

    def __init__(self, place: str, *, before: str = "", after: str = "") -> None:
        """`before` and `after`: text around the summaries in the description."""
        self._place, self._before, self._after = place, before, after

    @property
    def registry(self) -> Registry[Entry]:
        """The registry of possible values."""
        found: Registry[Entry] = provided(self._place)
        return found

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """How pydantic checks a value."""
        del source, handler
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Description and values for docs/config.md."""
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
    """The names as text: a, b or c."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
