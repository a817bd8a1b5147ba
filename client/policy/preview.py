"""What a policy would refuse in a run, found without taking part; for `fednc client --dry-run`.

Collects objections instead of acting on them; nothing that the dry run computes leaves this machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Message

from fednc.client.link.link import Host
from fednc.client.policy import objections
from fednc.client.policy.ledger import data_fingerprint
from fednc.client.policy.objections import Objection
from fednc.client.policy.owner import Owner, judge_run, run_of
from fednc.protos import federation_pb2 as pb


class PolicyPreview:
    """A host that allows everything and collects the policy's objections.

    Attributes:
        digest: of the run file.
        barring: objections to the whole run.
        coming: objections to what the run will ask for while this client takes part.
    """

    def __init__(self, host: Host, owner: Owner) -> None:
        self._host, self._owner = host, owner
        self.digest = ""
        self.barring: list[Objection] = []
        self.coming: list[Objection] = []

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        """See Host."""
        owner, run = self._owner, run_of(welcome)
        self.digest = run.digest
        self.barring = judge_run(owner, run, welcome)
        self.coming = list(objections.to_coming(owner.policy, run))
        held = self._host.prepare(welcome)
        self.barring += objections.to_data(owner.policy, run, held)
        self.coming += objections.to_holdings(owner.policy, run, held, self._host.examples_having())
        code = owner.ledger.admit_run(
            data_fingerprint(owner.data),
            run.digest,
            welcome.run_id,
            owner.policy.quota,
            pin=owner.policy.runs.pin_first,
            keep=False,
        )
        if code:
            self.barring.append(Objection(code, "because of earlier runs over this data"))
        return held

    def examples_having(self) -> Sequence[int]:
        """See Host."""
        return self._host.examples_having()

    def work(self, message: Message) -> Message:
        """See Host."""
        return self._host.work(message)

    def leave(self) -> None:
        """See Host."""
        self._host.leave()
