"""Distributions with entry points, installed into a folder that one test puts on sys.path."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TASK = """
from fednc.tasks.image.task import ImageTask

class Clinic(ImageTask):
    name = "{name}"
    version = {version}
"""


class Site:
    """A folder of installed distributions, as site-packages is one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: set[str] = set()
        folder.mkdir(exist_ok=True)

    def install(
        self, distribution: str, entries: dict[str, dict[str, str]], source: str = "", release: str = "0.3.0"
    ) -> str:
        """A distribution with one module, called like it; `{}` in the targets of entry points stands for it."""
        module = re.sub(r"\W", "_", distribution).lower()
        assert module not in self.modules, "one module for each distribution of a site"
        (self.folder / f"{module}.py").write_text(source)
        self.modules.add(module)
        info = self.folder / f"{module}-{release}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {release}\n")
        lines = []
        for group, targets in entries.items():
            lines += [f"[{group}]", *(f"{name} = {target.format(module)}" for name, target in targets.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        return module

    def install_task(
        self, name: str, *, distribution: str = "clinic-table", release: str = "0.3.0", version: int = 1
    ) -> str:
        """A distribution whose task does what the image task does."""
        source = TASK.format(name=name, version=version)
        return self.install(distribution, {"fednc.tasks": {name: "{}:Clinic"}}, source, release)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site of its own for one test, which forgets its modules afterwards."""
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.folder))
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)
