"""The run file: one pydantic model, read from TOML. It defines everything about a run.

The server reads it and sends it to every client as JSON; `docs/config.md` is generated from it. A client only
adds its address, name, data and device. Knows no task: the task that `[task]` names checks that table.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from fednc.common.config import closed_form
from fednc.common.config.choices import provided
from fednc.common.config.class_sessions import ClassSessionSection
from fednc.common.config.evaluate import EvaluateSection
from fednc.common.config.personal import PersonalSection
from fednc.common.config.probe import ProbeSection
from fednc.common.config.server import ServerSection
from fednc.common.config.tables import (
    LATER,
    FrameSection,
    InitSection,
    LinkSection,
    MethodSection,
    RoundsSection,
    Section,
    SplitSection,
    TaskSection,
    TrainSection,
)
from fednc.common.errors import ConfigError
from fednc.common.plugins import check_name

_SPLIT_SECTION = "fednc.common.tasks.split_tables:split_section"


class RunConfig(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        "run", description="name of the run; its folder under `runs` starts with this name"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of everything random in the run")
    task: TaskSection = Field(default_factory=TaskSection)
    frame: FrameSection = Field(default_factory=FrameSection)
    method: MethodSection = Field(default_factory=MethodSection)
    init: Annotated[InitSection, LATER] = Field(default_factory=InitSection)
    train: TrainSection = Field(default_factory=TrainSection)
    rounds: RoundsSection = Field(default_factory=RoundsSection)
    sessions: Annotated[tuple[ClassSessionSection, ...], LATER] = ()
    split: Annotated[SplitSection | None, SerializeAsAny()] = None
    link: LinkSection = Field(default_factory=LinkSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    personal: Annotated[PersonalSection | None, LATER] = None
    probe: Annotated[ProbeSection | None, LATER] = None
    server: ServerSection = Field(default_factory=ServerSection)
    track: dict[Annotated[str, AfterValidator(check_name)], dict[str, Any]] = Field(
        default_factory=dict,
        description="a table [track.NAME] tells the tracker NAME about each round, and holds its settings; "
        "`csv`, `tensorboard`, `mlflow` and `wandb` come with fednc. Stays on the server",
    )

    @model_validator(mode="after")
    def _stages_end_alike(self) -> Self:
        if self.sessions and (self.rounds.stop_after or self.rounds.keep == "best"):
            raise ValueError(
                "rounds.stop_after and rounds.keep = 'best' choose among rounds over the same classes: leave them "
                "out, or leave out [[sessions]]"
            )
        return self

    @model_validator(mode="after")
    def _prior_fades_once(self) -> Self:
        if self.sessions and self.method.prior_fade:
            raise ValueError(
                "method.prior_fade would leave later [[sessions]] without the prior: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _probe_fits(self) -> Self:
        if self.probe and (self.sessions or self.task.weights or self.task.adapter_rank or not self.train.epochs):
            raise ValueError(
                "[probe] trains candidates from drawn weights: leave out [[sessions]], task.weights and "
                "task.adapter_rank, and set train.epochs to 1 or more, or leave out [probe]"
            )
        return self

    @field_validator("split", mode="wrap")
    @classmethod
    def _split_of_the_task(
        cls, value: Any, _: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> SplitSection | None:
        """The task may declare further tables of `[split]`; they are checked with the rest of the run file."""
        if value is None or "task" not in info.data:  # [task] is wrong, which is reported separately
            return None
        section: type[SplitSection] = provided(_SPLIT_SECTION)(info.data["task"].name)
        if isinstance(value, SplitSection) and not isinstance(value, section):
            value = value.model_dump()
        return section.model_validate(value)

    @model_validator(mode="before")
    @classmethod
    def _one_round_if_nothing_is_trained(cls, value: Any) -> Any:
        """Without training, further rounds give the same result: `rounds.total` is 1 unless the file sets it."""
        train, rounds = (
            (value.get(name, {}) for name in ("train", "rounds")) if isinstance(value, dict) else (0, 0)
        )
        if isinstance(train, dict) and isinstance(rounds, dict) and train.get("epochs") == 0:
            return {**value, "rounds": {"total": 1, **rounds}}
        return value

    @model_validator(mode="after")
    def _closed_form_fits(self) -> Self:
        tables = self.task, self.method, self.init, self.rounds, len(self.sessions)
        if not self.train.epochs and (problems := list(closed_form.problems(*tables))):
            raise ValueError(f"train.epochs = 0 trains nothing, which does not fit: {'; '.join(problems)}")
        return self

    @property
    def chosen_task(self) -> dict[str, Any]:
        """The keys of [task], with those of the candidate that a probe has picked."""
        picked = self.probe.keys_of(self.probe.picked) if self.probe and self.probe.picked else {}
        return {**self.task.model_dump(mode="json"), **picked}

    @property
    def all_rounds(self) -> int:
        """Rounds before and in all class sessions."""
        return self.rounds.total + sum(session.rounds for session in self.sessions)

    @property
    def digest(self) -> str:
        """sha256 (hex) of every setting that affects the result: equal digests mean equal runs."""
        return hashlib.sha256(json.dumps(self.decisive(), sort_keys=True).encode()).hexdigest()

    def decisive(self) -> dict[str, Any]:
        """Every setting that affects the result, as plain values: without [server], [track] and unused `LATER`
        keys.

        What a probe picks is left out: all candidates are in, and the pick is one of them.
        """
        left_out: Any = {"server": True, "track": True, "probe": {"picked"}}
        return _without_unused(self, self.model_dump(mode="json", exclude=left_out))

    def for_clients(self) -> str:
        """The run as JSON for clients: without [server], [track] and the file of weights, whose paths are private,
        and without keys of the method that only the server reads.

        So a client's digest is that of a run in which these keys have their defaults.
        """
        return self.model_dump_json(
            exclude={
                "server": True,
                "track": True,
                "task": self.task.server_keys,
                "method": self.method.server_keys,
            }
        )


def read_run_file(path: Path) -> RunConfig:
    """Read the run file at `path`.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has a key or value that is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"run file {path} is not UTF-8 text (byte {e.start}); save it as UTF-8") from e
    except OSError as e:
        raise ConfigError(
            f"cannot read run file {path}: {e.strerror}. `fednc init` writes one to start from."
        ) from e
    try:
        return parse_run(tomllib.loads(text), source=str(path))
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path} is not TOML: {e}") from e


def parse_run(values: dict[str, Any], *, source: str = "run") -> RunConfig:
    """Validate plain values. Raises ConfigError with a line for every wrong key."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as e:
        raise ConfigError(explain(e, source)) from e


def parse_run_json(text: str | bytes, *, source: str) -> RunConfig:
    """As `parse_run`, from the JSON that a server sends to its clients."""
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as e:
        raise ConfigError(explain(e, source)) from e


def _without_unused(section: BaseModel, values: dict[str, Any]) -> dict[str, Any]:
    kept = dict(values)
    more = section.option_fields if isinstance(section, MethodSection) else {}
    for key, field in {**type(section).model_fields, **more}.items():
        value = getattr(section, key)
        if LATER in field.metadata and value == field.get_default(call_default_factory=True):
            kept.pop(key, None)
        elif key in kept and isinstance(value, BaseModel):
            kept[key] = _without_unused(value, kept[key])
    return kept


def explain(
    error: ValidationError,
    source: str,
    prefix: str = "",
    *,
    page: str = "docs/config.md",
    known: Collection[str] = (),
) -> str:
    """One line per wrong key: where it is, what is wrong, and what was given.

    Args:
        prefix: name of the table, if the error is about one table only.
        page: lists all keys.
        known: all keys of the table, if no page can list them.
    """
    lines = [f"{source} cannot be used:"]
    for item in error.errors(include_url=False, include_context=False):
        key = ".".join([*filter(None, [prefix]), *map(str, item["loc"])]) or "(file)"
        # a table is shown by its name alone: the message says what is wrong with its keys
        shown = item["type"] not in ("extra_forbidden", "missing") and not isinstance(item["input"], dict)
        said = " ".join(item["msg"].removeprefix("Value error, ").split()).removeprefix(f"{key}: ")
        quoted = isinstance(item["input"], str) and repr(item["input"]) in said
        given = f" (given: {item['input']!r:.80})" if shown and not quoted else ""
        if item["type"] == "extra_forbidden":
            where = f"there are: {', '.join(known)}" if known else f"{page} lists them all"
            said = f"no such key; {where}"
        lines.append(f"  {key}: {said}{given}")
    return "\n".join(lines)
