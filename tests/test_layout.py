"""The layout of the code: floors, rooms, packages, opening docstrings, and no paths of one machine in what is
committed."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support.source_trees import parsed

ROOT = Path(__file__).parents[1]
FLOORS = {
    "api": {"api", "bench", "ops", "server", "client", "tasks", "common", "protos"},
    "cli": {"cli", "api", "bench", "ops", "server", "client", "tasks", "common", "protos"},
    "bench": {"bench", "server", "client", "tasks", "common", "protos"},
    "ops": {"ops", "server", "client", "tasks", "common", "protos"},
    "server": {"server", "common", "protos"},
    "client": {"client", "common", "protos"},
    "tasks": {"tasks", "common"},
    "common": {"common", "protos"},
    "protos": {"protos"},
}
# Rooms of a floor from the top down: a room may import those that stand after it, and itself. "" is the files that
# lie in the floor's own folder; one of them with another place is named by itself.
ROOMS = {
    "server": ["", "foreign", "operations", "rounds", "aggregation", "link", "access", "storage"],
    "client": ["", "policy", "foreign", "app", "training", "link"],
    # fewshot is the image task with classes that come later: it derives from it.
    "tasks": [
        "colorize",
        "panoptic",
        "multitask",
        "segmentation",
        "quantum",
        "pointcloud",
        "tabular",
        "signal",
        "fewshot",
        "image",
        "dense",
        "vision",
        "",
    ],
    # config asks learning, wire and tasks for names and tables, by their place (common/config/choices.py).
    "common": [
        "model_export.py",
        "distributions.py",
        "flower_adapter.py",
        "initialise",
        "process",
        "wire",
        "versions.py",
        "tasks",
        "methods",
        "learning",
        "config",
        "security",
        "",
    ],
}

FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
OURS = [path for path in [*FILES, *sorted((ROOT / "tests").rglob("*.py"))] if "_pb2" not in path.name]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(source: str) -> set[str]:
    """Every module that `source` imports, also in functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def floors_of(modules: set[str]) -> set[str]:
    """The floors of these modules: `fednc.server.link.grid` is on floor `server`, `fednc.run` on `api`."""
    names = {parts[1] for module in modules if (parts := module.split("."))[0] == "fednc" and len(parts) > 1}
    return {name if name in FLOORS else "api" for name in names}


def files_of(modules: set[str]) -> set[Path]:
    """The files of these modules: `fednc.server.link.grid` is server/link/grid.py."""
    paths = {ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py") for module in modules if "fednc." in module}
    return {path for path in paths if path.is_file()}


def room_of(path: Path) -> str:
    """The room of a file: itself if `ROOMS` names it, else its folder; "" in the floor's own folder."""
    floor, *parts = path.relative_to(ROOT).parts
    if "/".join(parts) in ROOMS.get(floor, ()):
        return "/".join(parts)
    return parts[0] if len(parts) > 1 else ""


def upward() -> Iterator[tuple[str, str]]:
    """(file, file that it imports from a room above its own), within one floor."""
    for floor, rooms in ROOMS.items():
        for path in sorted((ROOT / floor).rglob("*.py")):
            for other in files_of(imported_modules(path.read_text(encoding="utf-8"))):
                same_floor = other.relative_to(ROOT).parts[0] == floor
                if same_floor and rooms.index(room_of(other)) < rooms.index(room_of(path)):
                    yield name(path), name(other)


def test_imports_are_found_everywhere_in_a_file() -> None:
    source = (
        "def f():\n    from fednc import server\n    import fednc.client.link.link as link\nfrom os import path\n"
    )
    assert floors_of(imported_modules(source)) == {"server", "client"}
    assert files_of(imported_modules(source)) == {ROOT / "client" / "link" / "link.py"}
    both = imported_modules(
        "from fednc.server.link import grid\nfrom fednc.server.rounds.run import FederatedRun\n"
    )
    assert {room_of(path) for path in files_of(both)} == {"link", "rounds"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_floor_imports_a_higher_one(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0]
    assert floors_of(imported_modules(path.read_text(encoding="utf-8"))) <= FLOORS[floor]


@pytest.mark.parametrize("floor", ROOMS)
def test_every_room_has_its_place(floor: str) -> None:
    assert {room_of(path) for path in FILES if path.relative_to(ROOT).parts[0] == floor} <= set(ROOMS[floor])


def test_no_room_imports_a_higher_one() -> None:
    assert set(upward()) == set(), "these files import one from a room above their own"


def test_imports_have_no_cycles() -> None:
    """Not under TYPE_CHECKING either: two files that import each other cannot be read one at a time."""
    graph = {path: files_of(imported_modules(path.read_text(encoding="utf-8"))) - {path} for path in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(FILES)  # raises CycleError


def test_every_class_name_means_one_thing() -> None:
    places: dict[str, set[str]] = {}
    for path in FILES:
        if "_pb2" not in path.name:
            for node in parsed(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, set()).add(name(path))
    assert {cls: found for cls, found in places.items() if len(found) > 1} == {}


def test_the_wheel_has_every_folder() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in FILES}
    # The folder `api` is the package `fednc`, every other one a subpackage of it.
    assert tools["packages"] == sorted(
        ".".join(("fednc", *folder.parts)).replace("fednc.api", "fednc") for folder in folders
    )
    assert tools["package-dir"] == {f"fednc.{floor}".replace("fednc.api", "fednc"): floor for floor in FLOORS}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


@pytest.mark.parametrize("path", OURS, ids=name)
def test_every_file_says_what_lives_there(path: Path) -> None:
    assert ast.get_docstring(parsed(path.read_text(encoding="utf-8"))), "open the file with what lives here"


def test_no_path_of_a_machine_is_committed() -> None:
    places = [f"{ROOT}/", f"{Path.home()}/"]
    command = ["git", "grep", "-nIF", *(word for place in places for word in ("-e", place))]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, ""), "git grep found a path of this machine, or could not look"
