"""Syntax trees of the project's files, for tests that read code."""

from __future__ import annotations

import ast
import gc


def parsed(source: str) -> ast.Module:
    """The tree of `source`.

    No garbage collection meanwhile: if one starts code that parses something, CPython 3.11 raises SystemError
    ("AST constructor recursion depth mismatch").
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if was_on:
            gc.enable()
