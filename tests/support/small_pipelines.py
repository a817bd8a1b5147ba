"""Small pipelines on generated images, in this process or in processes of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fednc.cli.pipeline import in_process, search_in_process
from fednc.common.config.run import RunConfig
from fednc.ops.approvals.box import ApprovalBox
from fednc.ops.pipelines.journal import Cause, Journal, PipelineRun
from fednc.ops.pipelines.pipeline_file import PipelineFile, read_pipeline
from fednc.ops.pipelines.runner import Runner
from fednc.ops.pipelines.work import Carriers, RunOrder
from support.registered_runs import clients_data

ASKED = Cause("operator", "a test asked for it")
RUN: dict[str, Any] = {
    "name": "toy",
    "task": {"name": "image", "classes": ["a", "b", "c"], "size": 8, "channels": 1, "width": 8},
    "rounds": {"total": 2, "min_clients": 2},
    "frame": {"dim": 8},
    "train": {"batch": 16},
}


@dataclass
class Counting:
    """A carrier that counts how often it had to work."""

    orders: list[RunOrder] = field(default_factory=list)

    def __call__(self, order: RunOrder) -> None:
        self.orders.append(order)
        in_process(order)


class SmallPipeline:
    """A pipeline in a folder, with two clients and their data, written as files."""

    def __init__(self, folder: Path, *, gate: dict[str, Any] | None = None, **tables: Any) -> None:
        self.folder, self.path = folder, folder / "pipeline.toml"
        self.carrier = Counting()
        self.said: list[str] = []
        self.run: dict[str, Any] = {
            key: dict(value) if isinstance(value, dict) else value for key, value in RUN.items()
        }
        self.clients = {name: self._data(name) for name in ("anna", "bert")}
        self.run["evaluate"] = {"test": self._data("test"), "test_share": 1}
        self.tables: dict[str, Any] = {"deploy": {}, **tables}
        if gate is not None:
            self.tables["gate"] = {"folder": str(folder / "approvals"), **gate}

    def _data(self, name: str) -> str:
        """A copy of its own, so that a test may change it."""
        made = Path(clients_data(self.folder, name, "abc", len(name)).removeprefix("npz:"))
        text = made.rename(self.folder / f"{name}.npz")
        return f"npz:{text}"

    def new_data(self, name: str) -> None:
        """Other images at one client."""
        made = Path(clients_data(self.folder, name, "abc", 77).removeprefix("npz:"))
        made.replace(self.folder / f"{name}.npz")

    def write(self) -> Path:
        """Write the pipeline file."""
        values = {
            "name": "toy",
            "device": "cpu",
            "folder": str(self.folder / "pipelines"),
            "clients": self.clients,
            "run": self.run,
            **self.tables,
            "register": {"store": str(self.folder / "models"), **self.tables.get("register", {})},
        }
        self.path.write_text(as_toml(values))
        return self.path

    def read(self) -> tuple[PipelineFile, RunConfig]:
        return read_pipeline(self.write())

    def __call__(self, cause: Cause = ASKED, *, waits: bool = False) -> PipelineRun:
        """Run it in this process."""
        file, run = self.read()
        return Runner(file, run, Carriers(self.carrier, search_in_process), self.said.append, waits)(cause)

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "pipelines" / "toy")

    @property
    def box(self) -> ApprovalBox:
        return ApprovalBox(self.folder / "approvals")

    def states(self) -> dict[str, str]:
        """The state of each step of the last run."""
        last = self.journal.latest()
        assert last is not None
        return {step.name: str(step.state) for step in last.steps}


def as_toml(values: dict[str, Any]) -> str:
    """Values as TOML, tables inline: JSON's strings, numbers, booleans and lists are TOML too."""
    return "".join(f"{key} = {_inline(value)}\n" for key, value in values.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value)
