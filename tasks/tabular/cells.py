"""What the text of a table's cell means: a missing value, a number, yes or no, a category.

The same rules for every site and file format, so that `0`, `0.0` and `"0"` are one class wherever they stand.
Knows no files.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fednc.common.errors import DataError

MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "<NA>")
UNKNOWN = -2.0  # code of a category that is not listed; a missing one is NaN


@dataclass(frozen=True)
class Where:
    """A column of a table, for messages.

    Attributes:
        text: file and column.
        row_names: `file.csv:7` for each row that is read, which need not be all rows of the file.
    """

    text: str
    row_names: Sequence[str] = ()

    def __str__(self) -> str:
        return self.text

    def row(self, place: int) -> str:
        """Number of a row in its file, from 1 without the header; with the file, if there are several."""
        name = self.row_names[place]
        first = self.row_names[0].rpartition(":")[0]
        file, _, number = name.rpartition(":")
        return number if file == first == self.row_names[-1].rpartition(":")[0] else name


Texts = np.ndarray[Any, np.dtype[np.object_]]  # str, or None where a value is missing
Floats = np.ndarray[Any, np.dtype[np.float64]]

_CODE = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")  # a code such as 007 is text
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_YES, _NO = {"true", "yes", "t", "y", "1"}, {"false", "no", "f", "n", "0"}
_SHOWN = 5


def comparable(text: str) -> str:
    """The form in which values are compared: outer spaces removed, NFC, and 1.0 as 1."""
    text = unicodedata.normalize("NFC", text.strip())
    if _CODE.fullmatch(text):
        value = float(text)
        if math.isfinite(value):
            return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return text


def present(values: Texts, missing: Collection[str], known: Collection[str] = ()) -> Texts:
    """Each value as text, None if it is missing. `known`: values that are never missing, e.g. a class `NA`."""
    absent = set(missing) - set(known)
    texts = [value.strip() if isinstance(value, str) else None for value in values]
    found = np.empty(len(texts), dtype=object)
    found[:] = [None if text in absent else text for text in texts]
    return found


def as_numbers(texts: Texts, where: Where, *, decimal_comma: bool = False) -> Floats:
    """float64, NaN where missing. Raises DataError naming the rows that are not finite numbers."""
    found = np.array([_number(text, decimal_comma) for text in texts], dtype=np.float64)
    odd = [row for row in np.flatnonzero(~np.isfinite(found)).tolist() if texts[row] is not None]
    if odd:
        raise DataError(
            f"{where}: {_rows(texts, odd, where)} not a number. Correct the file, add the text to task.missing if "
            "it means a missing value, or list the column under task.categorical in the run file"
        )
    return found


def _number(text: str | None, decimal_comma: bool) -> float:
    """NaN or infinite if it is none."""
    if text is None:
        return math.nan
    if decimal_comma and "," in text and _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        return math.nan if "_" in text else float(text)  # Python reads 1_000
    except ValueError:
        return math.nan


def as_booleans(texts: Texts, where: Where) -> Floats:
    """1 for yes, 0 for no, NaN where missing. Raises DataError naming other rows."""
    found, odd = np.full(len(texts), np.nan), []
    for row, text in enumerate(texts):
        if text is None:
            continue
        word = comparable(text).lower()
        if word in _YES | _NO:
            found[row] = float(word in _YES)
        else:
            odd.append(row)
    if odd:
        raise DataError(
            f"{where}: {_rows(texts, odd, where)} neither yes nor no (true/false, yes/no, t/f, y/n, 1/0). Correct "
            "the file, or list the column under task.categorical in the run file"
        )
    return found


def as_places(texts: Texts, values: Sequence[str]) -> Floats:
    """Place of each text in a list, `UNKNOWN` if it is not in it, NaN where missing."""
    place = {comparable(value): float(number) for number, value in enumerate(values)}
    return _coded(texts, place)


def as_buckets(texts: Texts, column: str, buckets: int, salt: str) -> Floats:
    """Hash bucket of each text, NaN where missing. `salt` makes the buckets of each run differ."""
    used = {comparable(text) for text in set(texts) - {None}}
    return _coded(texts, {text: float(_bucket(text, column, buckets, salt)) for text in used})


def _bucket(text: str, column: str, buckets: int, salt: str) -> int:
    joined = "\0".join((salt, column, text)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "big") % buckets


def _coded(texts: Texts, code: Mapping[str, float]) -> Floats:
    code_of = {text: code.get(comparable(text), UNKNOWN) for text in set(texts) - {None}}
    found = [math.nan if text is None else code_of[text] for text in texts]
    return np.array(found, dtype=np.float64)


def refused_labels(texts: Texts, code_N: Floats, classes: Sequence[str], where: Where) -> DataError:
    """The error for targets that are no class of the run."""
    odd = np.flatnonzero(code_N == UNKNOWN).tolist()
    shown = ", ".join(map(repr, classes[:10])) + (", ..." if len(classes) > 10 else "")
    return DataError(
        f"{where}: {_rows(texts, odd, where)} not a class of the run, whose classes are {shown} (task.classes). "
        "Correct the file, or give integer labels their names with --class-names"
    )


def _rows(texts: Texts, rows: Sequence[int], where: Where) -> str:
    """`row 3: 'abc' is`, `rows 3, 4: 'abc', 'def' are each`."""
    numbers = ", ".join(where.row(row) for row in rows[:_SHOWN])
    quoted = ", ".join(dict.fromkeys(f"{texts[row]!r:.40}" for row in rows[:_SHOWN]))
    if len(rows) == 1:
        return f"row {numbers}: {quoted} is"
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"rows {numbers}{more}: {quoted} are each"
