"""Writes plain values as TOML, which Python only reads.

Used where a run file or a file for another program is made. Knows no keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_toml(values: Mapping[str, Any]) -> str:
    """Plain values as TOML: what `tomllib` reads back."""
    lines: list[str] = []
    _write(lines, values, "")
    return "\n".join(lines).strip() + "\n"


def _write(lines: list[str], table: Mapping[str, Any], prefix: str) -> None:
    for key, value in table.items():
        if not _is_table(value) and not _is_tables(value):
            lines.append(f"{_key(key)} = {value_text(value)}")
    for key, value in table.items():
        name = f"{prefix}{_key(key)}"
        if _is_table(value):
            lines += ["", f"[{name}]"]
            _write(lines, value, f"{name}.")
        elif _is_tables(value):
            for one in value:
                lines += ["", f"[[{name}]]"]
                _write(lines, one, f"{name}.")


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _key(key: str) -> str:
    bare = key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)
    return key if bare else _text(key)


def value_text(value: Any) -> str:
    """One value as TOML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {value_text(v)}" for k, v in value.items()) + " }"
    return str(value)  # a date or time


def _text(text: str) -> str:
    """A basic string: TOML has the escapes of JSON, and does not allow DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
