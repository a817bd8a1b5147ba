"""Names of the files that show predictions to users, after where each example came from.

Used by tasks and by `fednc predict`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

MOST_STEM = 100  # characters


def file_stem(name: str) -> str:
    """Where an example came from, as the beginning of a file's name: the end of a path, without its ending."""
    return _clean(name.rsplit("/", 1)[-1].rsplit(".", 1)[0])


def file_stems(names: Sequence[str]) -> list[str]:
    """As `file_stem`, a different one for each name: where that is the same, also the ending or the whole path.

    Different also on a disk that does not tell capital letters apart. `file_stem` of a result is the result.
    """
    forms = [(file_stem(name), _clean(name.rsplit("/", 1)[-1]), _clean(name)) for name in names]
    times = Counter(key for each in forms for key in {_key(form) for form in each})
    taken: set[str] = set()
    found = []
    for number, each in enumerate(forms):
        own = [form for form in each if times[_key(form)] == 1 and _key(form) not in taken]
        stem = own[0] if own else _numbered(each[0], number)
        while _key(stem) in taken or (not own and times[_key(stem)]):
            number += len(names)
            stem = _numbered(each[0], number)
        taken.add(_key(stem))
        found.append(stem)
    return found


def _numbered(stem: str, number: int) -> str:
    return f"{stem}-{number}"[-MOST_STEM:]


def _clean(text: str) -> str:
    """The end of a text, which says most, of letters that every disk takes."""
    return "".join(letter if letter.isalnum() or letter in "-_[]" else "_" for letter in text)[-MOST_STEM:]


def _key(stem: str) -> str:
    """What two names share that may become one file."""
    return "".join(letter if letter not in "[]" else "_" for letter in stem).casefold()
