"""Data specs of this task: `characters:...`, `npz:PATH`, `folder:PATH`.

Called by the task. Chooses the reader, the training or test part, and a reference for every picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fednc.common.errors import DataError
from fednc.common.tasks.api import Purpose
from fednc.common.tasks.data_spec import parse_spec
from fednc.tasks.colorize.options import ColorizeOptions
from fednc.tasks.colorize.sources import arrays, folders, generated
from fednc.tasks.colorize.sources.pairs import Pairs

SPECS = "characters:KEY=VALUE,..., npz:PATH or folder:PATH"


def read(text: str, purpose: Purpose, options: ColorizeOptions, test_share: float) -> Pairs:
    """The pictures of data spec `text` for a purpose, each with a reference.

    Args:
        test_share: `evaluate.test_share`; the last pictures of data without a test part.

    Raises:
        DataError: the data is missing, unreadable, or unusable.
    """
    if purpose == "input":
        text = _with_kind(text)
    spec = parse_spec(text)
    if (spec.only and spec.kind != "npz") or spec.class_names or (spec.columns and spec.kind != "npz"):
        raise DataError(f"data {text!r}: `only` and `columns` are for npz: data here, and `class-names` for none")
    if spec.kind == "npz" and spec.has_colon:
        found = arrays.read_npz(spec, purpose, options)
    elif spec.kind == "folder" and spec.has_colon:
        found = folders.read_folder(spec.place, purpose, options)
    elif spec.kind == "characters":
        found = generated.read_characters(spec.place, purpose, options)
    else:
        raise DataError(f"data {text!r}: expected {SPECS}")
    if purpose != "input" and not found.has_test:
        found = _divided(found, purpose, test_share, text)
    return found.with_references()


def _with_kind(text: str) -> str:
    path = Path(text.partition("?")[0]).expanduser()
    if path.is_dir():
        return f"folder:{text}"
    return f"npz:{text}" if path.is_file() and path.suffix.lower() == ".npz" else text


def _divided(found: Pairs, purpose: Purpose, share: float, text: str) -> Pairs:
    """The training or test part that `evaluate.test_share` makes of data without one: its last pictures."""
    total = len(found.names)
    held = int(np.ceil(share * total - 1e-9))
    if purpose == "test" and not held:
        raise DataError(
            f"{text}: has no test part, and its {total} pictures may be training data. Add test pictures "
            "(colour_test in an .npz, a folder `test` beside `train`), or set evaluate.test_share, e.g. 0.2."
        )
    index = np.arange(total)
    return found.select(index[total - held :] if purpose == "test" else index[: total - held])
