"""Shared by the contract apps; copied beside each of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid

App = Callable[[Message, Context], Message]


def both(grid: Grid) -> list[int]:
    """The two nodes of the contract, which are connected when the app starts."""
    nodes = sorted(grid.get_node_ids())
    assert len(nodes) == 2, nodes
    return nodes


def finish(context: Context, answers: Any) -> None:
    """Write the results for the test to compare."""
    text = json.dumps(answers, sort_keys=True, indent=1)
    (Path(str(context.run_config["out"])) / "answers.json").write_text(text)


def part(context: Context) -> int:
    """Which of the two nodes this is."""
    return int(context.node_config["partition-id"])
