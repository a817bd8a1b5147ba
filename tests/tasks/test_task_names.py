"""No task's name occurs outside its own folder, its configurations, tests and documents."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from fednc.common.config.tables import TaskSection
from fednc.common.tasks import discovery
from support.source_trees import parsed

ROOT = Path(__file__).parents[2]
FOLDERS = ("cli", "bench", "ops", "server", "client", "tasks", "common", "protos")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
MEASURED = ROOT / "bench" / "trainer.py"  # measures the steps of one task's models, by name
DEFAULT = ROOT / "common" / "config" / "tables.py"  # the run file's default task is part of its configuration


@cache
def words(path: Path) -> list[tuple[int, str, bool]]:
    """(line, module, False) of everything that a file imports, (line, text, True) of its strings."""
    found = []
    for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.module or "", False))
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, False) for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((node.lineno, node.value, True))
    return found


def mentions(path: Path, name: str, *, in_text: bool = True) -> list[int]:
    """Lines that import from the task's folder or, with `in_text`, hold its name as a whole string."""
    return [
        line
        for line, word, is_text in words(path)
        if (word == name and in_text if is_text else f"tasks.{name}" in word)
    ]


@pytest.mark.parametrize("name", discovery.names())
def test_a_task_is_named_only_in_its_own_folder(name: str) -> None:
    others = set(discovery.names()) - {name}
    for path in SOURCES:
        parts = path.relative_to(ROOT).parts
        if parts[:2] == ("tasks", name):
            continue
        if parts[0] == "tasks" and parts[1] in others:
            continue  # one task may be built on another
        # There `image` is a word: the name of a column or a folder.
        in_text = parts[:2] not in (("tasks", "vision"), ("tasks", "dense"))
        lines = mentions(path, name, in_text=in_text)
        if path == DEFAULT and TaskSection().name == name:
            assert len(lines) == 1
            continue
        if path == MEASURED and name == TaskSection().name:
            continue
        assert not lines, f"{path.relative_to(ROOT)}, lines {lines}: ask the task instead of knowing it"


def test_the_configuration_knows_no_images() -> None:
    words = re.compile(r"image|pixel|colour|rotat|bright|photo", re.IGNORECASE)
    for path in (ROOT / "common" / "config").rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [line for line in lines if words.search(line)]
        assert found == [line for line in found if path == DEFAULT and f'"{TaskSection().name}"' in line], path


def test_names_are_those_of_the_folders() -> None:
    assert {name: task.name for name, task in discovery.installed().items()} == {
        name: name for name in discovery.names()
    }
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in SOURCES if "tasks/fewshot" not in path.as_posix()
    )
    assert "fewshot" not in text
