"""The keys of data that is made up: `KIND:images=400,seed=1,site=0/3`.

Called by the tasks' readers of generated data. Each names its keys and how the value of each is read. Knows no
kind of data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fednc.common.errors import DataError

Keys = Mapping[str, Callable[[str], Any]]  # how the value of each key is read; ValueError: it cannot be used

MOST_EXAMPLES = 100_000
MOST_SITES = 1000


def parse_keys(kind: str, place: str, keys: Keys) -> dict[str, Any]:
    """The values in `place`, by key. Raises DataError: an unknown key, or a value that is not allowed."""
    found: dict[str, Any] = {}
    for item in filter(None, place.split(",")):
        key, equals, text = item.partition("=")
        if key not in keys or not equals or key in found:
            raise DataError(
                f"{kind}:{place}: {item!r} is not KEY=VALUE with a key of {', '.join(keys)}, each once"
            )
        try:
            found[key] = keys[key](text)
        except ValueError as e:
            raise DataError(f"{kind}:{place}: {key} = {text!r} cannot be used ({e})") from e
    return found


def between(low: float, high: float, kind: type) -> Callable[[str], Any]:
    """Reads a number of that kind."""

    def read(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError(f"must be {low} to {high}")
        return value

    return read


def site(text: str) -> tuple[int, int]:
    """`0/3`: the first of three sites."""
    number, of = map(int, text.split("/"))
    if not 0 <= number < of <= MOST_SITES:
        raise ValueError("sites are counted from 0")
    return number, of


COUNT, SEED = between(1, MOST_EXAMPLES, int), between(0, 2**62, int)
