"""Clients whose owner has a policy, on generated images, with a readable log. Shared by the tests of policies."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.policy.audit import Audit
from fednc.client.policy.guard import Guard
from fednc.client.policy.ledger import Ledger
from fednc.client.policy.owner import Owner
from fednc.client.policy.rules import Policy
from fednc.common.config.run import RunConfig
from support.hostile.image_server import welcome

STRICT = Path(__file__).parents[2] / "examples" / "policies" / "strict.toml"
# Allows every question, as often as asked: only what a test adds protects.
OPEN: dict[str, Any] = {
    "runs": {"pin_first": False},
    "quota": {"runs_per_day": 0},
    "floor": {"batch": 1, "steps": 1, "examples": 1, "held_out": 1, "sum_examples": 1},
    "ceiling": {"lr": 0, "forgetting": 0},
    "allow": {"gradients": True, "class_sums": True, "subsets": True},
}


def open_but(**tables: dict[str, Any]) -> Policy:
    merged = {name: {**OPEN.get(name, {}), **tables.get(name, {})} for name in {**OPEN, **tables}}
    return Policy.model_validate(merged)


def strict_but(**tables: dict[str, Any]) -> Policy:
    values = tomllib.loads(STRICT.read_text(encoding="utf-8"))
    return Policy.model_validate({name: {**values.get(name, {}), **tables.get(name, {})} for name in values})


@dataclass
class Site:
    """One machine with images. A client that is started again finds the same records."""

    folder: Path
    policy: Policy | None = None
    val_share: float = 0.1
    min_sum_examples: int = 0
    data: str = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.data = f"npz:{self.folder / 'images.npz'}"

    @property
    def images(self) -> Path:
        return self.folder / "images.npz"

    @property
    def records(self) -> Path:
        return self.folder / "records"

    @property
    def config(self) -> ClientConfig:
        return ClientConfig(
            name="site",
            data=self.data,
            device="cpu",
            val_share=self.val_share,
            min_sum_examples=self.min_sum_examples,
        )

    def start(self) -> Guard:
        """A client as `fednc client` starts it, with its audit log switched on."""
        if self.policy is None:
            return Guard(AppHost(self.config, app), Audit(self.folder / "audit.jsonl"))
        owner = Owner(self.policy, Ledger(self.records), self.data, self.val_share)
        return Guard(AppHost(owner.bind(self.config), app), Audit(self.folder / "audit.jsonl"), owner)

    def join(self, run: RunConfig) -> Guard:
        """A started client that the server has welcomed to the run."""
        client = self.start()
        client.prepare(welcome(run, "run"))
        return client

    def log(self, **wanted: Any) -> list[dict[str, Any]]:
        """Lines of the audit log with these values."""
        lines = [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]
        return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]
