"""What a step of a pipeline gets to work with, and what a carrier of a federated run looks like.

Used by the steps, the runner and the carriers. Knows none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import FedncError
from fednc.ops.pipelines.journal import Journal, PipelineRun
from fednc.ops.pipelines.pipeline_file import PipelineFile
from fednc.ops.registry.registry import ModelRegistry
from fednc.ops.search.plan import SearchPlan
from fednc.ops.search.study import SearchView
from fednc.server.storage.events import Event


class GateRejectedError(FedncError):
    """A person, or a rule of the gate, has rejected the candidate."""


class GateWaitsError(FedncError):
    """The gate still waits for a person."""


@dataclass(frozen=True)
class RunOrder:
    """One federated run, for a carrier.

    Attributes:
        clients: data spec of each client, by name; with a split, client i has part i.
        folder: of the run; what is in it already is continued.
        heard: called with each event of the run.
    """

    file: PipelineFile
    run: RunConfig
    clients: Mapping[str, str]
    folder: Path
    heard: Callable[[Event], None]


class Carrier(Protocol):
    """Runs a federated run to its end, and leaves model, rounds and summary in its folder."""

    def __call__(self, order: RunOrder) -> None:
        """Run it. Raises FedncError; KeyboardInterrupt: interrupted, and can be continued."""


@dataclass(frozen=True)
class SearchOrder:
    """A search over the clients of a pipeline.

    Attributes:
        tell: called with a line for each trial.
    """

    file: PipelineFile
    plan: SearchPlan
    clients: Mapping[str, str]
    tell: Callable[[str], None]


class SearchCarrier(Protocol):
    """Does the trials of a search that are missing."""

    def __call__(self, order: SearchOrder) -> SearchView:
        """Do them. Raises FedncError; KeyboardInterrupt."""


@dataclass(frozen=True)
class Carriers:
    """What works with the clients, wherever they are."""

    run: Carrier
    search: SearchCarrier


@dataclass
class PipelineWork:
    """One run of a pipeline at work.

    Attributes:
        inputs: sha256 of each client's data and of the test data, by name; empty where it cannot be read here.
        tell: shows one line to the person who watches.
        waits: whether the gate waits for a person; otherwise the pipeline ends there and is continued later.
        results: what each step has found so far, by its name.
    """

    file: PipelineFile
    journal: Journal
    current: PipelineRun
    carriers: Carriers
    inputs: Mapping[str, str]
    tell: Callable[[str], None] = lambda _text: None
    waits: bool = True
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def run(self) -> RunConfig:
        """The run file, with the settings that the search has found."""
        return parse_run(self.tables, source="the run file")

    @property
    def tables(self) -> dict[str, Any]:
        """The same as plain values."""
        found = self.results.get("search")
        return self.file.tables if found is None else dict(found["tables"])

    @cached_property
    def registry(self) -> ModelRegistry:
        """The registry of models; nothing is opened before it is used."""
        return ModelRegistry(self.file.store)

    @property
    def federated(self) -> Path:
        """The folder of the federated run, once it has ended."""
        last = self.results.get("sessions") or self.results["train"]
        return self.journal.place / str(last["folder"])
