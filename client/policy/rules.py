"""The policy of a client's owner: what a server may ask of this client. One pydantic model, read from TOML.

Read by the command, enforced by `guard.py`. Only the owner sets its keys; nothing that a server sends changes one.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from fednc.common.config.run import explain
from fednc.common.config.tables import NonNegative, Section
from fednc.common.errors import ConfigError
from fednc.common.wire.failure_reasons import CodedError

AtLeast0 = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
REFUSED = "refused-by-owner"  # the code of a refusal on the wire

# Fixed on purpose: what a server is told depends on the code only, never on the data.
SENTENCES = {
    "task": "the client's owner does not allow this task",
    "method": "the client's owner does not allow this method",
    "run": "the client's owner does not allow this run, by its digest",
    "pinned": "the client's owner allows one run over this data, and this is a different one",
    "run-changed": "the instruction belongs to a different run file than the one that this client agreed to",
    "subset": "the server chooses which part of the data is used, which the client's owner does not allow",
    "rounds": "the run has more rounds than the client's owner allows, or the instruction is for none of them",
    "batch": "the batch is smaller than the client's owner allows",
    "steps": "an update would have fewer training steps than the client's owner allows",
    "rate": "the learning rate, weight decay or proximal term would let one batch decide the update",
    "optimizer": "the client's owner limits learning rates, and such a limit only works for plain SGD",
    "examples": "the reply would be about fewer examples than the client's owner allows",
    "sum": "a sum would be over fewer examples than the client's owner allows",
    "classes": "the reply would be about fewer classes than the client's owner allows",
    "gradients": "the client's owner does not allow gradients",
    "class-sums": "the client's owner does not allow class sums",
    "data-sums": "the client's owner does not allow sums of the data",
    "evaluation": "the client's owner does not allow evaluation",
    "personal": "the client's owner does not allow personal models",
    "probe": "the client's owner does not allow the probe",
    "kind": "the client's owner does not allow this type of message",
    "again": "this client has already trained in this round, from another model",
    "runs-quota": "the client's owner allows no more runs over this data today",
    "queries-quota": "the client's owner allows no more answers about this data, today or ever",
    "download": "the download is larger than the client's owner allows",
    "records": "the client could not write its owner's records, and sends nothing without them",
}


class OwnerRefusalError(CodedError):
    """Refused by the owner's policy. The server gets the sentence as a reply; `detail` is not sent."""

    def __init__(self, code: str, detail: str = "") -> None:
        self.code, self.sentence = REFUSED, f"{code}: {SENTENCES[code]}"
        super().__init__(self.sentence)
        self.reason_code, self.detail = code, detail


class RunsAllowed(Section):
    """Which runs this client takes part in."""

    tasks: tuple[str, ...] = Field((), description="tasks that may be trained; empty: any that is installed")
    methods: tuple[str, ...] = Field((), description="methods that may be used; empty: any")
    digests: tuple[Digest, ...] = Field(
        (), description="digests of the allowed run files, as `--dry-run` shows them; empty: any"
    )
    pin_first: bool = Field(
        True, description="allow only the first run over this data, for ever; recorded in the state folder"
    )
    rounds: AtLeast0 = Field(0, description="most rounds of a run, including those of sessions; 0: any")


class Quota(Section):
    """How often the same data may be used. Days are UTC."""

    runs_per_day: AtLeast0 = Field(1, description="most runs over the same data in a day; 0: any")
    queries_per_day: AtLeast0 = Field(
        0, description="most answers about the same data in a day: updates, class sums, evaluations; 0: any"
    )
    queries: AtLeast0 = Field(0, description="most answers about the same data in all; 0: any")


class Floor(Section):
    """The least that a reply must be made of."""

    batch: AtLeast0 = Field(2, description="examples per training step and per gradient of the initialisation")
    steps: AtLeast0 = Field(2, description="training steps of an update")
    examples: AtLeast0 = Field(2, description="training examples that an update or class sums are made of")
    held_out: AtLeast0 = Field(2, description="examples that an evaluation is made of")
    sum_examples: AtLeast0 = Field(
        2, description="examples in a class sum or in sums of the data; smaller sums are not sent"
    )
    classes: AtLeast0 = Field(0, description="classes with examples in a reply; 0: any")


class Ceiling(Section):
    """The most that a run may ask for."""

    lr: NonNegative = Field(1.0, description="learning rate; 0: any")
    forgetting: NonNegative = Field(
        0.1,
        description="lr / (1 - momentum) times (weight decay + proximal term); near 1 the last batch alone "
        "decides the update; 0: any",
    )
    download_mib: NonNegative = Field(0.0, description="size of the content of one instruction, in MiB; 0: any")


class Allow(Section):
    """What may be asked for at all; everything else is refused."""

    gradients: bool = Field(
        False, description="gradients, their slopes and scales, which `init` and `init.report` of a run ask for"
    )
    class_sums: bool = Field(False, description="sums of features over each class (the class memory)")
    data_sums: bool = Field(
        False,
        description="sums of the data before round 1, which some tasks normalise with; otherwise none is sent",
    )
    evaluation: bool = Field(True, description="statistics of the model over the held-out examples")
    personal: bool = Field(
        False,
        description="fine-tuning the final model here after the last round, and statistics of it over the "
        "held-out examples; the model itself never leaves",
    )
    probe: bool = Field(
        False,
        description="trying the candidates of a probe before round 1, and sums of their losses over this client's "
        "training examples; the trained candidates never leave",
    )
    own_metrics: bool = Field(
        False,
        description="listing this client's own metrics by its name; otherwise the server is asked to count them "
        "only among those of all clients. It gets the statistics either way",
    )
    subsets: bool = Field(
        False, description="runs that use a part of the data: a simulated [split], or [[sessions]] with shots"
    )
    manifest: bool = Field(
        True,
        description="the data manifest, which is kept with every model: columns, label map, counts rounded up to "
        "powers of two, a keyed fingerprint; otherwise none is sent",
    )
    name_in_history: bool = Field(
        True, description="this client's name in the history of models; otherwise a pseudonym stands there"
    )
    progress_loss: bool = Field(
        False, description="the loss of single batches in progress reports; otherwise 0 is sent"
    )


class Policy(Section):
    """What a client's owner lets a server ask. Set at the client; servers can neither read nor change it."""

    state: str = Field(
        "",
        description="folder for the policy's records, relative to this file; empty: its name + `.state`",
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
            f"--policy {path}: cannot be read ({e.strerror}). Start from a copy of examples/policies/strict.toml."
        ) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"--policy {path}: not TOML: {e}") from e
    try:
        policy = Policy.model_validate(values)
    except ValidationError as e:
        raise ConfigError(explain(e, f"policy {path}", page="docs/deploy.md")) from e
    return policy, path.parent / policy.state if policy.state else path.with_name(f"{path.name}.state")
