"""Finds which files of a folder are images of which class, and what is left out and why.

Called by `files.py` for a client's data and by `tasks/vision/suggest.py` for `fednc init`. Opens no image. Ignores
hidden files and folders (`.git`, `._a.png`) and `__MACOSX`, and counts everything else that is not used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fednc.common.errors import DataError
from fednc.tasks.vision.sources.images import Purpose
from fednc.tasks.vision.sources.labels import quoted, refuse_twins

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
PARTS: tuple[Purpose, ...] = ("train", "test")


@dataclass
class LeftOut:
    """Files that are not used, by reason; the first of each is shown."""

    by_reason: dict[str, list[Path]] = field(default_factory=dict)

    def add(self, reason: str, path: Path) -> None:
        """Count one file."""
        self.by_reason.setdefault(reason, []).append(path)

    def notes(self, root: Path) -> tuple[str, ...]:
        """One sentence per reason."""
        return tuple(
            f"left out: {len(paths)} {reason} (first: {os.path.relpath(paths[0], root)!r})"
            for reason, paths in sorted(self.by_reason.items())
        )


@dataclass(frozen=True)
class Classes:
    """The class folders of a data set.

    Attributes:
        images: by class name, sorted; only classes that have any.
        has_test: whether the data set has a test part.
        notes: what was left out.
    """

    images: dict[str, list[Path]]
    has_test: bool
    notes: tuple[str, ...]


def as_path(place: str) -> Path:
    """The path, with `~` replaced by the home folder. Raises DataError if there is no home."""
    try:
        return Path(place).expanduser()
    except RuntimeError as e:
        raise DataError(f"{place}: no home folder for `~`; write the whole path") from e


def class_folders(place: str, purpose: Purpose, known: tuple[str, ...] = ()) -> Classes:
    """The images of each class for `purpose`, from PLACE/train and PLACE/test if they exist, else from PLACE.

    Args:
        known: class names; a folder called `train` may contain the images of a class `train`.

    Raises:
        DataError: the folder does not exist, cannot be read, or has no images.
    """
    root, source = as_path(place), f"folder:{place}"
    if not root.is_dir():
        raise DataError(f"{source}: {'is a file, expected a folder' if root.is_file() else 'no such folder'}")
    left = LeftOut()
    with readable(source):
        parts = {name: root / name for name in PARTS if _is_part(root / name, known, root)}
        used = parts.get(purpose, parts.get("train", root))
        found = _classes_in(used, left, beside=set(parts.values()) if used == root else set())
        if used != root:
            _outside(root, set(parts.values()), left)
    images = {name: paths for name, paths in found.items() if paths}
    empty = sorted(set(found) - set(images))
    notes = left.notes(root) + ((f"class folders without a usable image: {quoted(empty)}",) if empty else ())
    if not images:
        raise DataError("\n  ".join([_nothing(source, used, root, len(found)), *notes]))
    refuse_twins(list(images), source)
    return Classes(images, has_test="test" in parts or root.resolve().name == "test", notes=notes)


def images_in(folder: Path, left: LeftOut | None = None) -> list[Path]:
    """The image files directly in `folder`, by name; others are added to `left`. Does not enter nested folders."""
    found = []
    for path in _visible(folder):
        reason = _why_not(path)
        if reason is None:
            found.append(path)
        elif left is not None:
            _leave(path, reason, left)
    return found


def _classes_in(folder: Path, left: LeftOut, beside: set[Path]) -> dict[str, list[Path]]:
    found = {}
    for path in _visible(folder):
        if path in beside:
            continue
        if path.is_dir():
            found[path.name] = images_in(path, left)
        else:
            reason = _why_not(path)
            left.add(reason or "loose images beside the class folders", path)
    return found


def _outside(root: Path, parts: set[Path], left: LeftOut) -> None:
    for path in _visible(root):
        if path.is_dir() and path not in parts:
            left.add("folders beside train/ and test/", path)
        elif path not in parts:
            left.add(_why_not(path) or "loose images beside train/ and test/", path)


def _is_part(folder: Path, known: tuple[str, ...], root: Path) -> bool:
    """Whether a folder called `train` or `test` contains classes; otherwise it is a class of that name."""
    if not folder.is_dir():
        return False
    inside = [path for path in _visible(folder) if path.is_dir()]
    if images_in(folder) or not any(images_in(path) for path in inside):
        return False
    siblings = any(path.is_dir() and path.name not in PARTS and images_in(path) for path in _visible(root))
    return not (folder.name in known and siblings)


def _why_not(path: Path) -> str | None:
    """Why a path is not an image to read; None if it is one."""
    if path.is_symlink() and not path.exists():
        return "broken links"
    if path.is_dir():
        return "nested folders"
    if path.suffix.lower() not in SUFFIXES:
        return f"files with the suffix {path.suffix.lower() or '(none)'!s}, which are not supported"
    return None if path.is_file() else "entries that are not files"


def _leave(path: Path, reason: str, left: LeftOut) -> None:
    if reason != "nested folders":
        left.add(reason, path)
        return
    inside = [one for one in _below(path) if one.suffix.lower() in SUFFIXES]
    for one in inside:
        left.add("images in nested folders; move them directly into their class's folder", one)
    if not inside:
        left.add("nested folders without images", path)


def _below(folder: Path) -> Iterator[Path]:
    """All visible files below a folder. Does not follow links to folders, since they may form a loop."""
    for at, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(at) / name for name in sorted(files) if not _is_hidden(name))


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not _is_hidden(path.name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _nothing(source: str, used: Path, root: Path, folders: int) -> str:
    where = source if used == root else f"{source}: {used.name}"
    return (
        f"{where}: no images in subfolders ({folders} subfolders). Expected one per class, with "
        f"{', '.join(sorted(SUFFIXES))} in it."
    )


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn errors of the file system into DataError."""
    try:
        yield
    except OSError as e:
        raise DataError(f"{source}: {e.filename} cannot be read ({e.strerror})") from e
