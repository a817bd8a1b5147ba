"""The shape of the house: floors, opening lines, file lengths, and nothing of one machine in what is committed."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "cli": {"cli", "bench", "server", "client", "common", "protos"},
    "bench": {"bench", "server", "client", "common", "protos"},
    "server": {"server", "common", "protos"},
    "client": {"client", "common", "protos"},
    "common": {"common", "protos"},
    "protos": {"protos"},
}
FILES = [path for floor in MAY_IMPORT for path in sorted((ROOT / floor).rglob("*.py"))]
OURS = [path for path in [*FILES, *sorted((ROOT / "tests").rglob("*.py"))] if "_pb2" not in path.name]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_modules(source: str) -> set[str]:
    """Every module that `source` imports anywhere, in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def floors_of(modules: set[str]) -> set[str]:
    """The floors among module names: `fednc.server.link.grid` is of floor `server`."""
    return {parts[1] for module in modules if (parts := module.split("."))[0] == "fednc" and len(parts) > 1}


def test_imports_are_found_wherever_they_hide() -> None:
    source = (
        "def f():\n    from fednc import server\n    import fednc.client.link.link as link\nfrom os import path\n"
    )
    assert floors_of(imported_modules(source)) == {"server", "client"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_floor_imports_a_higher_one(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    assert floors_of(imported_modules(path.read_text(encoding="utf-8"))) <= MAY_IMPORT[floor]


@pytest.mark.parametrize("path", OURS, ids=name)
def test_every_file_says_what_lives_there(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), "open the file with what lives here"


def test_nothing_of_one_machine_is_committed() -> None:
    places = [f"{ROOT}/", f"{Path.home()}/"]
    command = ["git", "grep", "-nIF", *(word for place in places for word in ("-e", place))]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, ""), "git grep found a path of this machine, or could not look"
