"""One registered version of a model, as the rest of the program sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ModelVersion:
    """A version whose files have been checked against its digest.

    Attributes:
        folder: its files on this machine, for `fednc.load`.
        digest: sha256 that binds all of its files; hex.
        tags: of the store.
        aliases: that point to it now.
        stale: whether label map, columns or classes have changed since it was trained.
        stale_why: one sentence; empty if it is not stale.
    """

    name: str
    version: int
    folder: Path
    digest: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...] = ()
    stale: bool = False
    stale_why: str = ""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class VersionRow:
    """One line of a listing; its files were not checked.

    Attributes:
        created_at: Unix time.
    """

    name: str
    version: int
    run: str
    method: str
    digest: str
    data_version: int
    data_at: float
    aliases: tuple[str, ...]
    stale: bool
    created_at: float
    mlflow_run: str
    tags: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"
