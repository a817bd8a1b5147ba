"""What `fednc compare` runs: a comparison file, and the rows that follow from it.

A row is one run of one variant in one setting with one seed and one learning rate. Variants may change only the
method, settings only the rest: all variants get the same splits, the same number of gradient steps and the same
learning rates to choose from. Called by `engine.py`; starts nothing, reads no data.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from fednc.common.config.run import RunConfig, explain, parse_run
from fednc.common.config.tables import Positive, Section
from fednc.common.errors import ConfigError
from fednc.common.methods.api import Method

DATA = "npz:{data}"  # stands for the path of the prepared file, which differs from machine to machine
Values = dict[str, Any]
POOLED, ALONE = "pooled", "alone"
CLIENT = "client"  # `{client}` in a data spec stands for the value of one client
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
Kind = Literal["tuning", "final"]


class Variant(Section):
    """A method under comparison."""

    name: Name = Field(description="what tables and plots call it")
    method: Values = Field(description="keys of [method] of the run file")
    frame: Values = Field(default_factory=dict, description="keys of [frame] of the run file")
    init: Values = Field(default_factory=dict, description="keys of [init]; they override the setting's")
    task: Values = Field(
        default_factory=dict,
        description="keys of [task] that say how the task trains, such as the weight of a loss; not its data",
    )
    sessions: Values = Field(
        default_factory=dict,
        description="keys of every table of [[sessions]] that say how it is trained, such as its `lr_factor`",
    )
    clients: str = Field(
        "",
        description="`pooled`: one model of all training data at one place; the name of a client: the model of "
        "this one on all test data (of a simulated split, `client-000` and so on name the client of each part); "
        "`alone`, for data with clients of its own: a model for each client, tested on its own test data; empty: "
        "all clients together",
    )
    settings: tuple[str, ...] = Field((), description="settings in which it runs; empty: all")
    rate_like: str = Field(
        "",
        description="variant whose learning rates it uses, for variants that differ in one line; empty: tuned",
    )

    @property
    def tuned_as(self) -> str:
        """The variant whose learning rates it uses: `rate_like`, or itself."""
        return self.rate_like or self.name


class Setting(Section):
    """The conditions that all variants share: data, split, training."""

    name: Name = Field(description="what tables and plots call it")
    title: str = Field("", description="what it is in a few words, for docs/results.md; empty: its name")
    run: Values = Field(default_factory=dict, description="keys of the run file that differ from the common ones")

    @model_validator(mode="after")
    def _leaves_methods_alone(self) -> Self:
        if self.run.keys() & {"method", "frame", "seed"}:
            raise ValueError("a setting cannot change run.method, run.frame or run.seed: write a variant")
        return self


class MethodPart(Section):
    """A part of a method. Its gain is the lead of `variant` over the best of `against`."""

    name: str = Field(description="what the part is, in a few words; parts with one name are reported together")
    variant: str = Field(description="variant that has it")
    against: tuple[str, ...] = Field(min_length=1, description="variants without it, and its controls")


class RelativeGain(Section):
    """How far a variant is ahead on several metrics: the mean of its relative changes, better being positive.

    With single-task models to compare with, this is the multi-task gain of the literature.
    """

    name: str = Field(description="what is gained, in a few words")
    variant: str = Field(description="the variant that is judged")
    setting: str = Field(description="its setting")
    against: dict[str, str] = Field(
        min_length=1, description="by metric, the variant that it is compared with in that metric"
    )
    against_setting: str = Field("", description="setting of these variants; empty: the same")

    @property
    def other_setting(self) -> str:
        """The setting of the variants that it is compared with."""
        return self.against_setting or self.setting


class Tuning(Section):
    """How learning rates are chosen, per variant and setting: on a validation split, with another seed."""

    seed: Annotated[int, Field(ge=0)] = Field(1000, description="seed of tuning runs; no result uses it")
    rates: tuple[Positive, ...] = Field(
        (0.003, 0.01, 0.03, 0.1, 0.3), min_length=1, description="learning rates to choose from"
    )
    rounds: Annotated[int, Field(ge=0)] = Field(
        0,
        description="rounds of a tuning run, if whole runs take too long; 0: as many as other runs",
    )
    val_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="share of the training data that is kept for validation in tuning runs"
    )
    repeats: Annotated[int, Field(ge=1)] = Field(
        1, description="validation splits over which a tuning run is averaged, for small data"
    )


class DataSection(Section):
    """The data set."""

    source: str = Field(description="data spec, e.g. `digits` or `npz:{fashion}`, given as --data fashion=PATH")
    test: str = Field("", description="data spec of the test data, if it is another one than `source`")
    clients: dict[Name, str] = Field(
        {},
        description="natural clients: what stands for `{client}` in `source` and `test`, by the client's name, or "
        "a list of names; each client trains and is tested on its own data. Then there is no [run.split]",
    )
    train_examples: Annotated[int, Field(ge=0)] = Field(
        0, description="training examples to use, stratified; 0: all"
    )
    test_examples: Annotated[int, Field(ge=0)] = Field(0, description="test examples to use, stratified; 0: all")

    @field_validator("clients", mode="before")
    @classmethod
    def _names_stand_for_themselves(cls, value: Any) -> Any:
        return {str(name): str(name) for name in value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _clients_have_places(self) -> Self:
        if bool(self.clients) != (f"{{{CLIENT}}}" in self.source):
            raise ValueError("data.clients and {client} in data.source go together: give both or neither")
        if self.clients and (self.train_examples or self.test_examples):
            raise ValueError("data.clients: natural clients use all of their data; leave out train_examples")
        if taken := {POOLED, ALONE} & set(self.clients):
            raise ValueError(f"data.clients: {taken.pop()!r} cannot be the name of a client")
        return self


class Published(Section):
    """A figure that others have published on the same data, to show beside ours."""

    name: str = Field(description="the method, as the authors call it")
    beside: str = Field("", description="the variant of ours that does the same; empty: none does")
    pooled: float = Field(description="the metric on all test examples together")
    mean: float | None = Field(None, description="mean of the metric over the clients, if it was published")


class Choice(Section):
    """Variants of which one is chosen, in each setting, by its metric on validation data alone."""

    name: Name = Field(description="what tables call the chosen one")
    among: tuple[str, ...] = Field(min_length=2, description="tuned variants")


class Comparison(Section):
    """A comparison file."""

    name: Name = Field(description="name of the folder of results")
    title: str = Field("", description="data and clients in a few words, for docs/results.md; empty: its name")
    tier: Literal["", "long", "smoke"] = Field(
        "",
        description="where docs/results.md shows it: `long` first, opening with the first setting; `smoke` last, "
        "as a test of the methods' first rounds; empty: in between",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, description="seeds of runs and splits")
    baseline: str = Field("fedavg", description="variant whose best value is the target of the column `rounds`")
    data: DataSection
    tuning: Tuning = Field(default_factory=Tuning)
    run: Values = Field(description="a run file: what all rows have in common")
    settings: tuple[Setting, ...] = Field(min_length=1)
    parts: tuple[MethodPart, ...] = Field((), description="parts of a method to judge")
    gains: tuple[RelativeGain, ...] = Field((), description="gains over several metrics to report")
    published: tuple[Published, ...] = Field((), description="published figures to show beside ours")
    published_by: str = Field("", description="where the published figures come from")
    choices: tuple[Choice, ...] = Field((), description="variants of which validation data chooses one")
    pictured: tuple[str, ...] = Field((), description="variants to show in pictures; empty: all")
    variants: tuple[Variant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for kind, names in (("setting", self.settings), ("variant", self.variants)):
            found = [one.name for one in names]
            if len(set(found)) < len(found):
                raise ValueError(f"two {kind}s have the same name: {', '.join(found)}")
        tuned = {variant.name for variant in self.variants if not variant.rate_like}
        for variant in self.variants:
            if variant.rate_like and variant.rate_like not in tuned:
                raise ValueError(f"rate_like = {variant.rate_like!r} of {variant.name!r} is not a tuned variant")
        named = {variant.name for variant in self.variants}
        for name in (*self.pictured, *(one for part in self.parts for one in (part.variant, *part.against))):
            if name not in named:
                raise ValueError(f"pictured or a part names {name!r}, which is not a variant")
        for choice in self.choices:
            if unknown := set(choice.among) - tuned:
                raise ValueError(f"choices: {choice.name!r} names {unknown.pop()!r}, which is not a tuned variant")
        for one in self.published:
            if one.beside and one.beside not in named | {choice.name for choice in self.choices}:
                raise ValueError(f"published: {one.beside!r} is not a variant or a choice")
        for variant in self.variants:
            there = {POOLED, ALONE, *self.data.clients}
            if self.data.clients and variant.clients and variant.clients not in there:
                raise ValueError(
                    f"clients = {variant.clients!r} of {variant.name!r} is not a client of data.clients"
                )
            is_part = variant.clients == POOLED or part_of(variant.clients) is not None
            if variant.clients and not self.data.clients and not is_part:
                raise ValueError(
                    f"clients of {variant.name!r}: the data has no clients of its own (data.clients), and "
                    f"{variant.clients!r} is neither {POOLED!r} nor the client of a part, such as {client_of(0)!r}"
                )
        settings = {setting.name for setting in self.settings}
        for variant in self.variants:
            if unknown := set(variant.settings) - settings:
                raise ValueError(f"settings of {variant.name!r}: {unknown.pop()!r} is not a setting")
        runs = {(setting.name, variant.name) for setting, variant in self.pairs}
        for gain in self.gains:
            wanted = {(gain.setting, gain.variant), *((gain.other_setting, one) for one in gain.against.values())}
            if missing := sorted(wanted - runs):
                raise ValueError(f"gains: {gain.name!r} needs variant {missing[0][1]!r} in {missing[0][0]!r}")
        for setting, variant in self.pairs:
            if (setting.name, variant.tuned_as) not in runs:
                raise ValueError(f"{variant.name!r} runs in {setting.name!r}, its rate_like does not")
        if self.data.clients and "split" in self.run:
            raise ValueError(
                "run.split divides one data set, but data.clients names natural clients: leave it out"
            )
        if self.baseline not in [variant.name for variant in self.variants]:
            raise ValueError(f"baseline {self.baseline!r} is not a variant")
        if self.tuning.seed in self.seeds:
            raise ValueError(
                f"seed {self.tuning.seed} is used for tuning (tuning.seed), so `seeds` must not contain it"
            )
        return self

    @property
    def pairs(self) -> list[tuple[Setting, Variant]]:
        """Every variant in every setting in which it runs."""
        every = ((setting, variant) for setting in self.settings for variant in self.variants)
        return [
            (setting, variant)
            for setting, variant in every
            if setting.name in (variant.settings or (setting.name,))
        ]

    def part(self, settings: Sequence[str]) -> Comparison:
        """The comparison in these settings alone; its rows are those that the whole one has in them.

        Raises:
            ConfigError: there is no such setting.
        """
        known = [setting.name for setting in self.settings]
        if unknown := [name for name in settings if name not in known]:
            raise ConfigError(f"--settings: {self.name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
        kept = tuple(setting for setting in self.settings if setting.name in settings)
        run = {variant.name for setting, variant in self.pairs if setting in kept}
        variants = tuple(variant for variant in self.variants if variant.name in run)
        return self.model_copy(update={"settings": kept, "variants": variants})


def client_of(part: int) -> str:
    """The name of the client that has a part of a simulated split."""
    return f"client-{part:03d}"


def part_of(client: str) -> int | None:
    """The part of a simulated split that a client has by its name; None: no client of a part is called so."""
    number = client.removeprefix("client-")
    return int(number) if number.isdigit() and client == client_of(int(number)) else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run to do; `run` refers to its data as `npz:{data}`."""

    kind: Kind
    setting: str
    variant: str
    seed: int
    lr: float
    run: RunConfig
    data_sha256: str
    clients: str = ""  # see Variant; empty also for data without clients of its own

    @property
    def digest(self) -> str:
        """sha256 (hex) of all that decides the outcome: the resolved run and the data, without names."""
        return self._digest({"name"})

    @property
    def training(self) -> str:
        """sha256 (hex) of all that decides the trained models: rows that share it differ only in the read-out."""
        method = self.run.method
        # the memory differs then, or the model does
        own = method.trains_with_memory or method.readout_needs.needs_ridge or method.fits_projection
        return self._digest({"name"} if own else {"name", "readout", "memory_source"})

    def _digest(self, left_out: set[str]) -> str:
        run = self.run.decisive()
        resolved = {**run, "method": {k: v for k, v in run["method"].items() if k not in left_out}}
        del resolved["name"]
        # Two methods with equal keys may do different things: fedadam and fedyogi, fedavg and fednova.
        does = [part.name for part in self.run.method.parts if _acts_by_name(part)]
        more = {**({"clients": self.clients} if self.clients else {}), **({"methods": does} if does else {})}
        text = json.dumps({"run": resolved, "data": self.data_sha256, **more}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def file_name(self) -> str:
        """The name of its file; readable and unique."""
        return file_name(self.kind, self.setting, self.variant, self.seed, self.lr, self.digest)


def _acts_by_name(method: Method) -> bool:
    """Whether a method has code of its own that runs whatever its keys are; others are sets of keys."""
    own = (name for name in ("local", "feature_terms", "beside", "kept", "step"))
    return not method.mixes and any(getattr(type(method), name) is not getattr(Method, name) for name in own)


def file_name(kind: str, setting: str, variant: str, seed: int, lr: float, digest: str) -> str:
    """The file name of a row's run."""
    return f"{kind}-{setting}-{variant}-s{seed}-lr{lr:g}-{digest[:12]}.json"


def read_comparison(path: Path, seeds: tuple[int, ...] | None = None) -> Comparison:
    """Read the comparison file at `path`; `seeds` replace the seeds in the file.

    Raises:
        ConfigError: not readable, not TOML, or a key or value is not allowed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return Comparison.model_validate({**values, "seeds": seeds} if seeds else values)
    except OSError as e:
        raise ConfigError(f"cannot read comparison file {path}: {e.strerror}") from e
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path} is not TOML: {e}") from e
    except ValidationError as e:
        raise ConfigError(explain(e, str(path))) from e


def tuning_rows(plan: Comparison, data_sha256: str) -> list[Row]:
    """Every variant without `rate_like`, in every setting, at every learning rate.

    Raises:
        ConfigError: a run is not valid, or two rows are the same run.
    """
    rates, seed = plan.tuning.rates, plan.tuning.seed
    return _distinct(
        [
            _row(plan, "tuning", setting, variant, seed, lr, data_sha256)
            for setting, variant in plan.pairs
            if not variant.rate_like
            for lr in rates
        ]
    )


def final_rows(plan: Comparison, rates: dict[tuple[str, str], float], data_sha256: str) -> list[Row]:
    """Every variant in every setting with every seed; `rates` gives the rate by (setting, variant.tuned_as).

    Raises:
        ConfigError: a run is not valid, or two rows are the same run.
    """
    return _distinct(
        [
            _row(plan, "final", setting, variant, seed, rates[setting.name, variant.tuned_as], data_sha256)
            for setting, variant in plan.pairs
            for seed in plan.seeds
        ]
    )


def _row(
    plan: Comparison, kind: Kind, setting: Setting, variant: Variant, seed: int, lr: float, data_sha256: str
) -> Row:
    values = _merged(
        plan.run,
        setting.run,
        {
            "name": plan.name,
            "seed": seed,
            "method": variant.method,
            "frame": variant.frame,
            "train": {"lr": lr},
            **({"init": variant.init} if variant.init else {}),
            **({"task": variant.task} if variant.task else {}),
            **({} if plan.data.clients else {"split": {"seed": seed}}),
            "evaluate": {"test": DATA},
        },
    )
    if variant.sessions:
        values["sessions"] = [{**one, **variant.sessions} for one in values.get("sessions", ())]
    source = f"{plan.name}, setting {setting.name}, variant {variant.name}"
    clients = _client_count(plan, variant, parse_run(values, source=source))
    per_round = 0 if variant.clients else values.get("rounds", {}).get("clients_per_round", 0)
    fewer = {"total": plan.tuning.rounds} if kind == "tuning" and plan.tuning.rounds else {}
    # A round without all of its clients must fail: it would not be comparable.
    values = _merged(values, {"rounds": {"min_clients": per_round or clients, **fewer}})
    return Row(
        kind=kind,
        setting=setting.name,
        variant=variant.name,
        seed=seed,
        lr=lr,
        run=parse_run(values, source=source),
        data_sha256=data_sha256,
        clients=variant.clients,
    )


def _client_count(plan: Comparison, variant: Variant, run: RunConfig) -> int:
    """How many clients a run has; one of `alone` is several runs of one client."""
    if plan.data.clients:
        return 1 if variant.clients else len(plan.data.clients)
    assert run.split is not None
    part = part_of(variant.clients)
    if part is not None and part >= run.split.parts:
        raise ConfigError(f"clients = {variant.clients!r} of {variant.name!r}: there are {run.split.parts} parts")
    return 1 if variant.clients else run.split.parts


def _merged(base: Values, *changes: Values) -> Values:
    """`base` with the changes merged into it, table by table."""
    merged = copy.deepcopy(base)
    for change in changes:
        for key, value in change.items():
            inner = merged.get(key)
            merged[key] = _merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return merged


def _distinct(rows: list[Row]) -> list[Row]:
    seen: dict[str, Row] = {}
    for row in rows:
        other = seen.setdefault(row.digest, row)
        if other is not row:
            raise ConfigError(
                f"variant {row.variant!r} in setting {row.setting!r} is the same run as {other.variant!r} in "
                f"{other.setting!r} (digest {row.digest[:12]}): remove one of them"
            )
    return rows
