"""What decides about a run: the owner's policy, its records and the data; and the judgement of a run file.

Used by `guard.py`, which enforces it, and by `preview.py`, which only reports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fednc.client.app.host import ClientConfig
from fednc.client.app.withheld_sums import NEVER
from fednc.client.policy import objections
from fednc.client.policy.ledger import Ledger
from fednc.client.policy.objections import Objection
from fednc.client.policy.rules import Policy
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.wire.messages import Instruction
from fednc.protos import federation_pb2 as pb


@dataclass(frozen=True)
class Owner:
    """An owner's policy and what it applies to.

    Attributes:
        policy: from the owner's file.
        ledger: the policy's records.
        data: data spec of this client.
        val_share: share of the data that is held out.
    """

    policy: Policy
    ledger: Ledger
    data: str
    val_share: float

    def bind(self, config: ClientConfig) -> ClientConfig:
        """The client's settings, at least as strict as the policy, and with subsets that no server chooses."""
        floor, allow, own = self.policy.floor, self.policy.allow, config.min_data_sum_examples
        least = floor.sum_examples if allow.class_sums else NEVER
        of_data = floor.sum_examples if allow.data_sums else NEVER
        return replace(
            config,
            min_sum_examples=max(config.min_sum_examples, least),
            min_data_sum_examples=max(config.min_sum_examples if own is None else own, of_data),
            min_batch=floor.batch,
            secret=self.ledger.secret,
            manifest=config.manifest and allow.manifest,
            manifest_key=self.ledger.secret.encode(),
            named=allow.name_in_history,
        )


def judge_run(owner: Owner, run: RunConfig, welcome: pb.Welcome) -> list[Objection]:
    """The policy's objections to a run file."""
    return list(objections.to_run(owner.policy, run, has_part=welcome.HasField("part")))


def run_of(welcome: pb.Welcome) -> RunConfig:
    """The run file of a welcome. Raises ConfigError."""
    try:
        return RunConfig.model_validate_json(welcome.run_json)
    except ValueError as e:
        raise ConfigError(f"this version of fednc cannot read the server's run file: {e}") from e


def to_changed_run(run: RunConfig, order: Instruction) -> list[Objection]:
    """Each instruction brings its run file: only the names of a session's classes may have been added since."""
    try:
        given = RunConfig.model_validate_json(order.run_json)
    except ValueError as e:
        return [Objection("run-changed", f"{type(e).__name__}")]
    return [] if _fixed(given) == _fixed(run) else [Objection("run-changed", f"digest {given.digest}")]


def _fixed(run: RunConfig) -> dict[str, Any]:
    named = [one.model_copy(update={"classes": ()}) if one.start == "operator" else one for one in run.sessions]
    return run.model_copy(update={"sessions": tuple(named)}).decisive()
