"""Reads pairs from .npz files: `line_train` [N, H, W], `colour_train` [N, H, W, 3] and so on, and `..._test`.

`region_*` [N, H, W] and `reference_*` [N, H, W, 3] may be missing; without lines they are made. Arrays may have
other names (`?columns=line=edge,colour=photo`), and no ending if the file has no test part. `classes` names the
region values; `?only=artist=2` keeps the pictures with that value in the array `artist`.

Called by `select.py`.

Legend: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks import npz_files
from fednc.common.tasks.api import Purpose
from fednc.common.tasks.data_spec import DataSpec
from fednc.common.tasks.row_choice import chosen_rows, part_column
from fednc.tasks.colorize.line_art import lines_of
from fednc.tasks.colorize.options import ColorizeOptions
from fednc.tasks.colorize.sources.pairs import (
    Array,
    Pairs,
    numbered_regions,
    refuse_grey,
    resized,
    resized_regions,
)

LINE, COLOUR, REGION, REFERENCE, REFERENCE_REGION = "line", "colour", "region", "reference", "reference_region"
_ROLES = {LINE: 3, COLOUR: 4, REGION: 3, REFERENCE: 4, REFERENCE_REGION: 3}  # axes of each
_PARTNERS = {LINE: COLOUR, REGION: COLOUR, REFERENCE_REGION: REFERENCE}  # of the same size


def read_npz(spec: DataSpec, purpose: Purpose, options: ColorizeOptions) -> Pairs:
    """The pictures of an .npz. Raises DataError: unreadable, or arrays of other types or shapes."""
    arrays = _load(spec)
    unknown = sorted(set(spec.columns) - set(_ROLES))
    if unknown:
        raise DataError(f"{spec.source}: columns has no role {unknown[0]!r}; there are {', '.join(_ROLES)}")
    name_of = {role: spec.columns.get(role, role) for role in _ROLES}
    has_test = any(f"{name_of[role]}_test" in arrays for role in (COLOUR, LINE))
    part = "test" if has_test and purpose != "train" else "train"
    key_of = {role: key for role, name in name_of.items() for key in (f"{name}_{part}", name) if key in arrays}
    if COLOUR not in key_of and not (purpose == "input" and {LINE, REFERENCE} <= set(key_of)):
        raise DataError(
            f"{spec.source}: has no array {name_of[COLOUR]!r} or '{name_of[COLOUR]}_{part}', only "
            f"{', '.join(sorted(arrays)) or 'none'}. Name yours with ?columns=line=NAME,colour=NAME."
        )
    values = {role: _checked(arrays[key], role, f"{spec.source}: {key}") for role, key in key_of.items()}
    _refuse_unlike(values, key_of, spec.source)
    count = len(next(iter(values.values())))
    rows = chosen_rows(spec, count, part_column(arrays, part, spec))
    names = tuple(f"{spec.place}[{i}]" for i in range(count))
    artists = _artists(arrays, part, count, spec)
    return _pairs(values, arrays, names, artists, options, spec, has_test=has_test).select(rows)


def _pairs(
    values: dict[str, Array],
    arrays: dict[str, Array],
    names: tuple[str, ...],
    artists: tuple[str, ...],
    options: ColorizeOptions,
    spec: DataSpec,
    *,
    has_test: bool,
) -> Pairs:
    colour, reference = (_colours(values.get(role), options) for role in (COLOUR, REFERENCE))
    if colour is not None:
        refuse_grey(colour, names, spec.source)
    if reference is not None:
        refuse_grey(reference, [f"the reference of {name}" for name in names], spec.source)
    named = arrays.get("classes")
    value_names = None if named is None else npz_files.texts(named, f"{spec.source}: classes")

    def regions(role: str) -> Tensor | None:
        if role not in values or not options.classes:
            return None
        value_NHW = resized_regions(torch.from_numpy(values[role]), options.size)
        return numbered_regions(value_NHW, value_names, options.classes, names, spec.source)

    notes: tuple[str, ...] = ()
    if LINE in values:
        line = resized(torch.from_numpy(values[LINE])[:, None], options.size)
    else:
        assert colour is not None
        line, notes = lines_of(colour), ("no array with lines: line art is made from the colours",)
    return Pairs(
        line_N1HW=line,
        colour_N3HW=colour,
        reference_N3HW=reference,
        region_NHW=regions(REGION),
        reference_region_NHW=regions(REFERENCE_REGION),
        names=names,
        artists=artists,
        has_test=has_test,
        notes=notes,
    )


def _artists(arrays: dict[str, Array], part: str, count: int, spec: DataSpec) -> tuple[str, ...]:
    key = next((key for key in (f"artist_{part}", "artist") if key in arrays), "")
    if not key:
        return ()
    if arrays[key].shape != (count,):
        raise DataError(
            f"{spec.source}: {key} has shape {list(arrays[key].shape)}, but there are {count} pictures; give one "
            "artist for each"
        )
    return npz_files.texts(arrays[key], f"{spec.source}: {key}")


def _load(spec: DataSpec) -> dict[str, Array]:
    path = Path(spec.place).expanduser()
    if not path.is_file():
        raise DataError(f"{spec.source}: no such file; give the path of an .npz file")
    return npz_files.arrays_in(path, spec.source)


def _checked(values: Array, role: str, source: str) -> Array:
    axes = _ROLES[role]
    colours = axes == 4
    if colours and values.ndim == 3 and values.dtype == np.uint8:
        raise DataError(f"{source} is grey, {list(values.shape)}, but should be coloured: uint8 [N, H, W, 3]")
    if values.dtype != np.uint8 or values.ndim != axes or (colours and values.shape[3] != 3) or not len(values):
        shape = "[N, H, W, 3]" if colours else "[N, H, W]"
        raise DataError(f"{source} is {values.dtype} {list(values.shape)}, expected uint8 {shape}")
    return np.ascontiguousarray(values)


def _refuse_unlike(values: dict[str, Array], key_of: dict[str, str], source: str) -> None:
    """Raises DataError: arrays with other numbers of pictures, or partners of other sizes."""
    first = next(iter(values))
    for role, found in values.items():
        if len(found) != len(values[first]):
            raise DataError(
                f"{source}: {key_of[role]} has {len(found)} pictures, {key_of[first]} has {len(values[first])}: "
                "some have no partner"
            )
        partner = _PARTNERS.get(role)
        if partner in values and found.shape[1:3] != values[partner].shape[1:3]:
            raise DataError(
                f"{source}: pictures of {key_of[role]} are {found.shape[1]}x{found.shape[2]}, those of "
                f"{key_of[partner]} {values[partner].shape[1]}x{values[partner].shape[2]} (height x width). A "
                "pair has one size."
            )


def _colours(values: Array | None, options: ColorizeOptions) -> Tensor | None:
    if values is None:
        return None
    return resized(torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2))), options.size)
