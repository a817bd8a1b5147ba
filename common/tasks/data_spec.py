"""Data specs: `KIND:PLACE`, with options that only the data's owner knows after a `?`.

Read by the tasks' data readers; commands with the options `--class-names` and `--columns` add the suffix. The
suffix works wherever a spec does: on the command line, in `evaluate.test`, in a Flower node's configuration.
`only=subject=7` chooses the rows of one subject, domain or site (`row_choice.py`). Knows no kind of data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from fednc.common.errors import DataError

CLASS_NAMES, COLUMNS, ONLY = "class-names", "columns", "only"
_SUFFIX = re.compile(r"(?P<before>.*)\?(?P<options>[A-Za-z_-]+=.*)", re.DOTALL)
_KEPT = " /:+()'!"  # not escaped in a suffix, since they separate nothing


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A parsed spec.

    Attributes:
        text: the spec as given, for messages.
        kind: the text before the colon; without a colon, the whole spec.
        place: the text after the colon.
        has_colon: whether there was a colon.
        class_names: names of integer labels from 0 on, as given by the data's owner; empty if not given.
        columns: column of a table for each role.
        only: the values that a row must have, by column; several values of one column are alternatives.
    """

    text: str
    kind: str
    place: str
    has_colon: bool
    class_names: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The spec without its suffix, for messages."""
        return f"{self.kind}:{self.place}" if self.has_colon else self.kind


def parse_spec(text: str) -> DataSpec:
    """Parse a spec. Raises DataError if the suffix has an unknown, repeated or empty option."""
    match = _SUFFIX.fullmatch(text)
    before, options = (match["before"], _options(text, match["options"])) if match else (text, {})
    kind, colon, place = before.partition(":")
    return DataSpec(
        text=text,
        kind=kind,
        place=place,
        has_colon=bool(colon),
        class_names=_names(text, options[CLASS_NAMES]) if CLASS_NAMES in options else (),
        columns=_columns(text, options[COLUMNS]) if COLUMNS in options else {},
        only=_only(text, options[ONLY]) if ONLY in options else {},
    )


def with_options(spec: str, class_names: str = "", columns: str = "") -> str:
    """`spec` with the values of `--class-names` and `--columns`. Raises DataError if they are invalid."""
    given = {CLASS_NAMES: class_names, COLUMNS: columns}
    added = "&".join(f"{key}={quote(value, safe=_KEPT + ',=%')}" for key, value in given.items() if value)
    if not added:
        return spec
    parse_spec(f"x:x?{added}")  # an error here names the option, not the spec
    joined = f"{spec}{'&' if _SUFFIX.fullmatch(spec) else '?'}{added}"
    parse_spec(joined)
    return joined


def _options(text: str, suffix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in suffix.split("&"):
        key, equals, value = item.partition("=")
        if key not in (CLASS_NAMES, COLUMNS, ONLY) or not equals:
            raise DataError(
                f"data {text!r}: unknown option {key!r} after the `?`; expected {CLASS_NAMES}=a,b,c or "
                f"{COLUMNS}=image=NAME,label=NAME or {ONLY}=COLUMN=VALUE, joined by `&`"
            )
        if key in found:
            raise DataError(f"data {text!r}: {key} is given twice; give it once")
        found[key] = value
    return found


def _names(text: str, value: str) -> tuple[str, ...]:
    names = tuple(unquote(name).strip() for name in value.split(","))
    if not all(names):
        raise DataError(
            f"data {text!r}: {CLASS_NAMES} has an empty name. Give one name for each label from 0, "
            "separated by commas (a comma inside a name is %2C)."
        )
    return names


def _columns(text: str, value: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in value.split(","):
        role, equals, name = (unquote(part) for part in item.partition("="))
        if not (role and equals and name) or role in found:
            raise DataError(f"data {text!r}: {COLUMNS} must be ROLE=NAME, with commas between several")
        found[role] = name
    return found


def _only(text: str, value: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for item in value.split(","):
        column, equals, wanted = (unquote(part) for part in item.partition("="))
        if not (column and equals and wanted):
            raise DataError(
                f"data {text!r}: {ONLY} must be COLUMN=VALUE, with commas between several, e.g. {ONLY}=subject=7"
            )
        found[column] = (*found.get(column, ()), wanted)
    return found
