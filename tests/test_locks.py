"""The packages of the images: the locks pin only what pyproject.toml allows, lower and upper bounds."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
LOCKS = {"lock-base.txt": (), "lock.txt": ("demo",)}  # lock file: the extras that it includes


def pinned(lock: str) -> dict[str, Version]:
    """Versions in a lock, and PyTorch's from the Dockerfile."""
    text = (ROOT / "deploy" / lock).read_text()
    pins = {canonicalize_name(n): Version(v) for n, v in re.findall(r"^(\S+)==(\S+) \\$", text, re.MULTILINE)}
    torch = re.search(r"^ARG TORCH=torch==(\S+)$", DOCKERFILE, re.MULTILINE)
    assert torch
    return {**pins, "torch": Version(torch[1])}


def violations(requirements: list[str], pins: dict[str, Version]) -> list[str]:
    """Requirements that are not pinned, or pinned to a version that is not allowed."""
    asked = [Requirement(each) for each in requirements]
    return [
        f"{each}, pinned: {pins.get(canonicalize_name(each.name))}"
        for each in asked
        if (pin := pins.get(canonicalize_name(each.name))) is None or pin not in each.specifier
    ]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_only_versions_that_the_project_allows(lock: str) -> None:
    wanted = [*PROJECT["dependencies"]]
    for extra in LOCKS[lock]:
        wanted += PROJECT["optional-dependencies"][extra]
    assert violations(wanted, pinned(lock)) == [], "edit the lock, or run `make lock`"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_hashes_and_no_index(lock: str) -> None:
    text = (ROOT / "deploy" / lock).read_text()
    entries = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "--index" not in text


def test_a_version_below_the_lower_bound_is_found() -> None:
    pins = {"grpcio": Version("1.81.1"), "numpy": Version("2.0")}
    assert violations(["grpcio>=1.85.3", "numpy>=1.26"], pins) == ["grpcio>=1.85.3, pinned: 1.81.1"]
    assert violations(["torch>=2.5"], pins) == ["torch>=2.5, pinned: None"]
