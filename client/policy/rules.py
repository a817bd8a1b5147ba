"""The policy of a client's owner: what a server may ask of this client. One pydantic model, read from TOML.

Read by the command, judged by `guard.py`. Every key is the owner's; nothing that a server sends changes one.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from fednc.common.config.run import explain
from fednc.common.config.tables import NonNegative, Section
from fednc.common.errors import ConfigError
from fednc.common.reasons import CodedError

AtLeast0 = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
REFUSED = "refused-by-owner"  # how a refusal is called on the wire

# Fixed on purpose: what a server is told depends on the code alone, never on the data.
SENTENCES = {
    "task": "this task is not among those that the client's owner allows",
    "method": "this method is not among those that the client's owner allows",
    "run": "this run's digest is not among those that the client's owner allows",
    "pinned": "the client's owner allows one run over this data, and this is another",
    "run-changed": "the instruction belongs to another run file than the one this client was welcomed with",
    "subset": "the run uses a part of the data that the server chooses, which the client's owner does not allow",
    "rounds": "the run has more rounds than the client's owner allows, or the instruction is of none of them",
    "batch": "the batch is smaller than the client's owner allows",
    "steps": "an update would come of fewer steps than the client's owner allows",
    "rate": "learning rate, weight decay or proximal term would let one batch decide the update",
    "examples": "the reply would be about fewer examples than the client's owner allows",
    "sum": "a class sum would be over fewer examples than the client's owner allows",
    "classes": "the reply would be about fewer classes than the client's owner allows",
    "gradients": "the client's owner does not let gradients be asked for",
    "class-sums": "the client's owner does not let class sums be asked for",
    "evaluation": "the client's owner does not let evaluation be asked for",
    "kind": "this client's owner allows no such question",
    "again": "this round was trained already, from another model",
    "runs-quota": "the client's owner allows no more runs over this data today",
    "queries-quota": "the client's owner allows no more questions about this data, today or ever",
    "download": "the download is larger than the client's owner allows",
    "records": "the client could not keep its owner's records, and nothing leaves without them",
}


class OwnerRefusalError(CodedError):
    """The owner's policy says no. The server reads it as the reply to its work; `detail` stays here."""

    def __init__(self, code: str, detail: str = "") -> None:
        self.code, self.sentence = REFUSED, f"{code}: {SENTENCES[code]}"
        super().__init__(self.sentence)
        self.reason_code, self.detail = code, detail


class RunsAllowed(Section):
    """Which runs this client takes part in."""

    tasks: tuple[str, ...] = Field((), description="tasks that may be learnt; empty: any that is installed")
    methods: tuple[str, ...] = Field((), description="methods that may be used; empty: any")
    digests: tuple[Digest, ...] = Field(
        (), description="digests of the run files that are allowed, as `--dry-run` shows them; empty: any"
    )
    pin_first: bool = Field(
        True, description="the first run over this data is the only one, ever; kept in the state folder"
    )
    rounds: AtLeast0 = Field(0, description="most rounds of a run, sessions included; 0: any")


class Quota(Section):
    """How much may be asked about the same data. A day is one of UTC."""

    runs_per_day: AtLeast0 = Field(1, description="runs over the same data in a day; 0: any")
    queries_per_day: AtLeast0 = Field(
        0, description="answers about the same data in a day: updates, class sums, evaluations; 0: any"
    )
    queries: AtLeast0 = Field(0, description="the same, for ever; 0: any")


class Floor(Section):
    """What a reply must be made of at least."""

    batch: AtLeast0 = Field(2, description="examples per training step and per gradient of the initialisation")
    steps: AtLeast0 = Field(2, description="training steps of an update")
    examples: AtLeast0 = Field(2, description="training examples that an update or class sums are made of")
    held_out: AtLeast0 = Field(2, description="examples that an evaluation is made of")
    sum_examples: AtLeast0 = Field(2, description="examples in a class's sum; smaller ones stay here")
    classes: AtLeast0 = Field(0, description="classes with examples in a reply; 0: any")


class Ceiling(Section):
    """What a run may not go beyond."""

    lr: NonNegative = Field(1.0, description="learning rate; 0: any")
    forgetting: NonNegative = Field(
        0.1,
        description="lr / (1 - momentum) times (weight decay + proximal term): near 1, an update is what the last "
        "batch made of it; 0: any",
    )
    download_mib: NonNegative = Field(0.0, description="size of what one instruction brings, in MiB; 0: any")


class Allow(Section):
    """What may be asked for at all. What is not allowed here is refused."""

    gradients: bool = Field(
        False, description="gradients, their slopes and scales, which `init` and `init.report` of a run ask for"
    )
    class_sums: bool = Field(False, description="sums of features over each class (the class memory)")
    evaluation: bool = Field(True, description="statistics of the model over what this client holds out")
    subsets: bool = Field(
        False, description="runs that use a part of the data: a simulated [split], [[sessions]] with their shots"
    )
    progress_loss: bool = Field(
        False, description="the loss of single batches in the progress reports; else it is sent as 0"
    )


class Policy(Section):
    """What a client's owner lets a server ask. Set at the client; a server can neither read nor change it."""

    state: str = Field(
        "",
        description="folder for the policy's records, relative to this file; empty: this file's name + `.state`",
    )
    runs: RunsAllowed = Field(default_factory=RunsAllowed)
    quota: Quota = Field(default_factory=Quota)
    floor: Floor = Field(default_factory=Floor)
    ceiling: Ceiling = Field(default_factory=Ceiling)
    allow: Allow = Field(default_factory=Allow)


def read_policy(path: Path) -> tuple[Policy, Path]:
    """The policy at `path` and the folder for its records.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has a key or value that is not allowed.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(
            f"--policy {path}: cannot be read ({e.strerror}). examples/policies/strict.toml is one to start from."
        ) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"--policy {path}: not TOML: {e}") from e
    try:
        policy = Policy.model_validate(values)
    except ValidationError as e:
        raise ConfigError(explain(e, f"policy {path}", page="docs/deploy.md")) from e
    return policy, path.parent / policy.state if policy.state else path.with_name(f"{path.name}.state")
