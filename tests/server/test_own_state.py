"""Who writes what in server/ and ops/: attributes are created in `__init__`, and others' state has methods."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from fednc.server.access.open_calls import OpenCall
from fednc.server.link.assignments import Batch, Work
from fednc.server.link.nodes import Node
from support.source_trees import parsed

TOP = Path(__file__).parents[2]
FILES = sorted(path for floor in ("server", "ops") for path in (TOP / floor).rglob("*.py"))
OTHER_RECORDS = (
    "slot",
    "record",
    "self._record",
    "welcome",
    "status",
    "exchange",
    "step",
    "now",
)  # other classes with a field of the same name
TREES = {path: parsed(path.read_text(encoding="utf-8")) for path in FILES}


def stores(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Attributes that are assigned to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node


def own_stores(tree: ast.AST) -> set[str]:
    """Names of attributes of `self` that are assigned to."""
    return {s.attr for s in stores(tree) if isinstance(s.value, ast.Name) and s.value.id == "self"}


def born(cls: ast.ClassDef) -> set[str]:
    """Attributes that the body of the class or its `__init__` creates."""
    found = set[str]()
    for part in cls.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            found.add(part.target.id)
        elif isinstance(part, ast.Assign):
            found |= {target.id for target in part.targets if isinstance(target, ast.Name)}
        elif isinstance(part, ast.FunctionDef) and part.name in ("__init__", "__post_init__"):
            found |= own_stores(part)
    return found


CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def inherited(cls: ast.ClassDef) -> set[str]:
    """Attributes that the class and those of its bases that are in server/ or ops/ create."""
    bases = [CLASSES[base.id] for base in cls.bases if isinstance(base, ast.Name) and base.id in CLASSES]
    return born(cls).union(*map(inherited, bases))


def late(cls: ast.ClassDef) -> set[str]:
    """Attributes that another method than `__init__` creates."""
    return own_stores(cls) - inherited(cls)


def written_outside(tree: ast.AST, fields: set[str]) -> list[str]:
    """Assignments to these fields of an object other than `self`."""
    return [
        f"{store.lineno}: {ast.unparse(store)}"
        for store in stores(tree)
        if store.attr in fields and ast.unparse(store.value) not in ("self", *OTHER_RECORDS)
    ]


def test_attributes_are_created_in_init() -> None:
    assert {name: found for name, cls in CLASSES.items() if (found := late(cls))} == {}


@pytest.mark.parametrize("cls", [Node, Work, Batch, OpenCall], ids=lambda cls: cls.__name__)
def test_only_their_own_file_writes_the_fields(cls: type) -> None:
    fields = {field.name for field in dataclasses.fields(cls)}
    own = TOP / Path(*cls.__module__.split(".")[1:]).with_suffix(".py")
    assert own in TREES
    found = {
        path.name: lines
        for path, tree in TREES.items()
        if path != own and (lines := written_outside(tree, fields))
    }
    assert found == {}


def test_the_checks_find_violations() -> None:
    source = (
        "class A:\n    def __init__(self):\n        self.a = 0\n    def b(self):\n        self.a, self.c = 1, 2"
    )
    cls = parsed(source).body[0]
    assert isinstance(cls, ast.ClassDef)
    assert late(cls) == {"c"}
    assert written_outside(parsed("work.node.state = 1\nself.state = 2\nnode.calls += 1"), {"state", "calls"}) == [
        "1: work.node.state",
        "3: node.calls",
    ]
