"""The pipeline file: one pydantic model, read from TOML. It says what to run, on what, and who must agree.

Read by `fednc pipeline` and by everything else in this folder. Knows no step.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from fednc.common.config.run import RunConfig, explain, parse_run, read_run_file
from fednc.common.config.tables import Section
from fednc.common.errors import ConfigError
from fednc.common.security.signatures import Trust
from fednc.ops.registry.names import CHALLENGER, CHAMPION
from fednc.ops.registry.store import DEFAULT_STORE
from fednc.ops.search.plan import SearchFile, SearchPlan, plan_of
from fednc.ops.search.strategies import make_pruner, make_sampler

PAGE = "docs/pipelines.md"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Alias = Annotated[str, Field(pattern=r"^([a-z][a-z0-9_-]{0,63})?$")]


class LinkTable(Section):
    """`[link]`: how `on = "link"` works."""

    start_clients: bool = Field(
        True, description="start a process on this machine for each of [clients]; false: they come by themselves"
    )
    client_certs: str = Field("", description="folder with a folder of `fednc certs` for each of [clients]")


class SimulationTable(Section):
    """`[simulation]`: how `on = "simulation"` works."""

    cpus: Annotated[int, Field(gt=0)] = Field(1, description="CPUs that Ray keeps for one client at work")
    gpus: Annotated[float, Field(ge=0)] = Field(0.0, description="share of a GPU that Ray keeps for one client")
    timeout_h: Annotated[float, Field(gt=0)] = Field(24.0, description="the longest that a run may take")


class SearchTable(Section):
    """`[search]`: settings that are tried before the run, as in a search file."""

    space: dict[str, Any] = Field(description="keys of the run file and what to try; docs/search.md")
    trials: Annotated[int, Field(ge=1)] = Field(10, description="how many trials")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the sampler")
    objectives: tuple[str, ...] = Field(("primary",), description="what counts; docs/search.md lists them")
    sampler: str | dict[str, Any] = Field(
        "TPE", description="a sampler by Optuna's name, or a table with its options"
    )
    pruner: str | dict[str, Any] = Field(
        "Nop", description="a pruner by Optuna's name, or a table with its options"
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="keys of the run file for trials only, such as rounds"
    )


class GateTable(Section):
    """`[gate]`: a person approves before the pipeline goes on."""

    before: Literal["register", "deploy"] = Field(
        "register", description="what waits for the verdict; with `deploy` the version is registered already"
    )
    at_least: dict[str, float] = Field(
        default_factory=dict, description="lowest values of metrics for which a person is asked at all"
    )
    at_most: dict[str, float] = Field(default_factory=dict, description="highest values of metrics")
    folder: str = Field(
        "", description="folder of requests and verdicts; empty: FEDNC_APPROVALS, else `approvals`"
    )
    trust: str = Field(
        "",
        description="folder of the authority whose signatures count, as `fednc certs` made it; empty: of any, "
        "so nobody knows who signed",
    )
    require_signature: bool = Field(False, description="only a signed verdict counts; needs trust")
    timeout_h: Annotated[float, Field(ge=0)] = Field(0.0, description="wait so long for a verdict; 0: for ever")
    on_timeout: Literal["fail", "reject"] = Field(
        "fail", description="fail: the next `fednc pipeline run` waits again. reject: as if a person had rejected"
    )

    @model_validator(mode="after")
    def _signatures_can_be_checked(self) -> Self:
        if self.require_signature and not self.trust:
            raise ValueError(
                "require_signature needs trust, the authority's folder: without it, anybody can make a "
                "certificate with any name"
            )
        return self


class RegisterTable(Section):
    """`[register]`: where the version goes."""

    store: str = Field("", description="folder or URI of the MLflow store; empty: FEDNC_STORE, else `models`")
    model: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")] = Field(
        "", description="name of the model; empty: the pipeline's name"
    )
    alias: Alias = Field(CHALLENGER, description="alias of the new version; empty: none")


class DeployTable(Section):
    """`[deploy]`: the alias that `fednc serve` follows."""

    alias: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")] = Field(
        CHAMPION, description="alias that moves to the new version"
    )
    url: str = Field("", description="http://HOST:PORT of `fednc serve`: wait until it serves the new version")
    swap_s: Annotated[float, Field(gt=0)] = Field(60.0, description="how long that may take")


class TriggerTable(Section):
    """`[triggers]`: when `fednc pipeline watch` starts a new run."""

    data: bool = Field(True, description="when the data of a client or the test data have changed")
    alarms: bool = Field(True, description="when a look raises a drift alarm")
    look_every_h: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="ask the clients so often for class sums of the served model, one round without training, to "
        "hear of drift and of new data at clients that come by themselves; 0: never",
    )
    every_h: Annotated[float, Field(ge=0)] = Field(0.0, description="so long after the last run began; 0: never")
    poll_s: Annotated[float, Field(gt=0)] = Field(10.0, description="how often to look")


class PipelineFile(Section):
    """A whole pipeline."""

    name: Name = Field("pipeline", description="name of the pipeline; its folder is FOLDER/NAME")
    run: str | dict[str, Any] = Field(
        description="path of the run file, from the pipeline file's folder; or its tables: [run.task], ..."
    )
    on: Literal["process", "link", "simulation"] = Field(
        "process",
        description="where clients work: in this process, over the link, or on Flower's simulation engine (Ray)",
    )
    folder: str = Field("pipelines", description="folder of all pipelines; from the working folder")
    device: str = Field("auto", description="device of the clients that this machine runs")
    checked_plugins: bool = Field(
        False,
        description="use only plug-ins that have passed `fednc plugins check`; one that failed is never used",
    )
    clients: dict[str, str] = Field(default_factory=dict, description="data spec of each client, by name")
    link: LinkTable = Field(default_factory=LinkTable)
    simulation: SimulationTable = Field(default_factory=SimulationTable)
    search: SearchTable | None = None
    gate: GateTable | None = None
    register_: RegisterTable = Field(default_factory=RegisterTable, alias="register")
    deploy: DeployTable | None = None
    triggers: TriggerTable = Field(default_factory=TriggerTable)

    @model_validator(mode="after")
    def _has_clients(self) -> PipelineFile:
        if not self.clients and not (self.on == "link" and not self.link.start_clients):
            raise ValueError(
                'clients: give the data of each client under [clients], NAME = "SPEC"; only with on = '
                "'link' and link.start_clients = false do clients come by themselves"
            )
        return self

    @model_validator(mode="after")
    def _nothing_passes_the_gate(self) -> PipelineFile:
        if self.gate is None or self.gate.before != "deploy":
            return self
        if self.deploy is None:
            raise ValueError("gate.before = 'deploy' holds back nothing without [deploy]: add it, or leave it out")
        if self.register_.alias == self.deploy.alias:
            raise ValueError(
                f"register.alias and deploy.alias are both {self.deploy.alias!r}: with gate.before = 'deploy' it "
                "would move to the new version before the verdict. Give register another alias, or none"
            )
        return self

    @property
    def tables(self) -> dict[str, Any]:
        """The run file as plain values."""
        assert isinstance(self.run, dict), "read_pipeline puts them there"
        return self.run

    @property
    def model(self) -> str:
        """Name of the model in the registry."""
        return self.register_.model or self.name

    def search_plan(self, name: str, folder: Path) -> SearchPlan:
        """The trials of [search], checked. Raises ConfigError."""
        assert self.search is not None
        source = f"[search] of pipeline {self.name}"
        try:
            search = SearchFile(run="", **self.search.model_dump())
        except ValidationError as e:
            raise ConfigError(explain(e, source, page="docs/search.md")) from e
        return plan_of(search, self.tables, name, folder, source)

    @property
    def store(self) -> str:
        """Where versions of models are kept."""
        return self.register_.store or os.environ.get("FEDNC_STORE", "") or DEFAULT_STORE

    @property
    def approvals(self) -> Path:
        """Where the gate asks."""
        wanted = self.gate.folder if self.gate else ""
        return Path(wanted or os.environ.get("FEDNC_APPROVALS", "") or "approvals")

    @property
    def place(self) -> Path:
        """Folder of everything that this pipeline keeps."""
        return Path(self.folder) / self.name


def read_pipeline(path: Path, on: str = "") -> tuple[PipelineFile, RunConfig]:
    """The pipeline file at `path`, with the tables of its run file in it; and the run file.

    Raises ConfigError with a line for every wrong key; MissingExtraError: what [search] needs is not installed.

    Args:
        on: where clients work, instead of the file's `on`.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"cannot read the pipeline file {path}: {e}. {PAGE} shows one") from e
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path} is not TOML: {e}") from e
    try:
        file = PipelineFile.model_validate({**values, **({"on": on} if on else {})})
    except ValidationError as e:
        raise ConfigError(explain(e, str(path), page=PAGE)) from e
    if isinstance(file.run, dict):
        run = parse_run(file.run, source=f"[run] of {path}")
    else:
        run = read_run_file(path.parent / file.run)
        tables = tomllib.loads((path.parent / file.run).read_text(encoding="utf-8"))
        file = file.model_copy(update={"run": tables})
    _check_tables(file)
    return file, run


def _check_tables(file: PipelineFile) -> None:
    """What a later step would refuse, hours later. Raises ConfigError, MissingExtraError."""
    if file.search:
        plan = file.search_plan(file.name, file.place)
        make_sampler(plan)
        make_pruner(plan)
    if file.gate and file.gate.trust:
        Trust.from_folder(Path(file.gate.trust))
