"""The contract with Flower apps: one small app per feature of Flower, run on stock Flower and on our link.

Both must write the same answers. Every app is a file in `apps/` with a `client` and a `server`. `make test-flower`
runs them with the installed Flower, `make test-flower-next` with the other version that fednc supports.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.shipped_commands import our_link
from support.stock_flower import StockFlower, stock_flower

APPS = Path(__file__).parent / "apps"
NAMES = sorted(path.stem for path in APPS.glob("*.py") if path.stem != "common")
PROJECT = """
[project]
name = "{name}"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "somebody"
fab-format-version = 0
[tool.flwr.app.components]
serverapp = "app:server"
clientapp = "app:client"
[tool.flwr.app.config]
out = ""
whole = 1
nested.half = 0.5
nested.yes = true
text = "as it was"
"""
OVERRIDES = {"nested.half": 0.25, "text": "said anew"}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockFlower]:
    """One installation with two nodes for all apps."""
    with stock_flower(tmp_path_factory.mktemp("stock") / "flower") as flower:
        for index in range(2):
            flower.add_node(f"node-{index}", {"partition-id": index, "num-partitions": 2})
        flower.await_nodes(2)
        yield flower


def make_app(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(APPS / f"{name}.py", folder / "app.py")
    shutil.copy(APPS / "common.py", folder)
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name.replace("_", "-")))
    return folder


def on_our_link(app: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    """The server's events."""
    settings = " ".join(f"{key}={json.dumps(value)}" for key, value in {"out": str(out), **OVERRIDES}.items())
    with our_link(out, "--app", str(app), "-c", settings, "--nodes", "2", *options) as link:
        for index in range(2):
            pairs = f"partition-id={index} num-partitions=2"
            link.join(f"node-{index}", "--app", str(app), "--node-config", pairs)
        return link.finish()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", NAMES)
def test_an_app_gives_the_same_answers_on_both(name: str, stock: StockFlower, tmp_path: Path) -> None:
    """Both at the same time: stock Flower mostly waits."""
    app = make_app(name, tmp_path / "app")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.mkdir()
    with ThreadPoolExecutor() as executor:
        running = executor.submit(stock.run, app, {"out": str(theirs), **OVERRIDES})
        events = on_our_link(app, ours)
        running.result()
    found, expected = (json.loads((place / "answers.json").read_text()) for place in (ours, theirs))
    assert found == expected
    assert len(json.dumps(found)) > 20
    assert {event["kind"] for event in events}.isdisjoint({"lost", "rejected", "quarantine", "too-large"})


def test_the_contract_has_a_dozen_apps() -> None:
    assert len(NAMES) >= 12
