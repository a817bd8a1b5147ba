"""Where the models to serve come from: run folders, or a registry that knows versions and aliases.

Called by `models.py` twice a second for each model, in a thread. Loads nothing itself: `model_export.load` does,
and verifies a folder's digests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fednc.common.errors import ConfigError, DataError
from fednc.common.model_export import FOLDER, MANIFEST, WEIGHTS

_SHOWN = 12  # digits of a digest that make the version of a folder


@dataclass(frozen=True)
class FoundModel:
    """One version of a model.

    Attributes:
        reference: what was asked for: a folder, or MODEL@ALIAS.
        version: its name among the versions of this model.
        digest: sha256 over its content, hex.
        folder: where it can be loaded from.
        stale: why its data is out of date; empty if it is not.
    """

    reference: str
    version: str
    digest: str
    folder: Path
    stale: str = ""


class ModelSource(Protocol):
    """Finds the version that a reference means now."""

    def find(self, reference: str) -> FoundModel:
        """The version that `reference` means now.

        Raises:
            FedncError: there is none, or its files are not what was registered.
        """


class FolderSource:
    """Run folders. Their version changes when a model is exported into them again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, ...], FoundModel]] = {}  # reference: its files' state, the version

    def find(self, reference: str) -> FoundModel:
        """See ModelSource. Files are only read when they have changed."""
        folder = _model_folder(Path(reference))
        state = tuple(number for name in (MANIFEST, WEIGHTS) for number in _state(folder / name))
        known = self._known.get(reference)
        if known is None or known[0] != state:
            digest = hashlib.sha256()
            for name in (MANIFEST, WEIGHTS):
                digest.update(hashlib.sha256(_read(folder / name)).digest())
            found = FoundModel(reference, digest.hexdigest()[:_SHOWN], digest.hexdigest(), folder)
            known = self._known[reference] = (state, found)
        return known[1]


class ResolvedVersion(Protocol):
    """What `RegistrySource` needs to know of a version; `ops/registry/` has more."""

    @property
    def version(self) -> int:
        """Its number."""

    @property
    def folder(self) -> Path:
        """Its files, checked against its digest."""

    @property
    def digest(self) -> str:
        """sha256, hex."""

    @property
    def stale_why(self) -> str:
        """Why its data is out of date; empty if it is not."""


class VersionRegistry(Protocol):
    """What `RegistrySource` needs of a registry."""

    def resolve(self, reference: str) -> ResolvedVersion:
        """The version that a reference means now. Raises FedncError: there is none, or it was changed."""


class RegistrySource:
    """Versions of the registry (`fednc models`)."""

    def __init__(self, registry: VersionRegistry) -> None:
        self._registry = registry

    def find(self, reference: str) -> FoundModel:
        """See ModelSource. The registry reads files again only if they have changed."""
        found = self._registry.resolve(reference)
        return FoundModel(reference, str(found.version), found.digest, found.folder, found.stale_why)


def open_registry(store: str) -> VersionRegistry:
    """The registry of `fednc models` in `store`; empty: its usual place. A folder needs none of it."""
    from fednc.ops.registry.registry import ModelRegistry

    return ModelRegistry(store) if store else ModelRegistry()


class AnySource:
    """A folder if the reference is one, else a model of the registry."""

    def __init__(self, registry: ModelSource | None) -> None:
        self._folders, self._registry = FolderSource(), registry

    def find(self, reference: str) -> FoundModel:
        """See ModelSource."""
        if is_folder(reference):
            return self._folders.find(reference)
        if self._registry is None:
            raise ConfigError(f"{reference}: no such folder; give the folder of a finished run, or MODEL@ALIAS")
        return self._registry.find(reference)


def is_folder(reference: str) -> bool:
    """Whether a reference is a path: a folder that exists, or what can be nothing else, like `./x` and `/x`."""
    return reference.startswith((".", "/")) or Path(reference).is_dir()


def _model_folder(path: Path) -> Path:
    for folder in (path, path / FOLDER):
        if (folder / MANIFEST).is_file():
            return folder
    raise DataError(f"{path}: no {MANIFEST} in it or in its folder `{FOLDER}`; give the folder of a finished run")


def _state(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return (0, 0, 0)
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}); export the run again") from e
