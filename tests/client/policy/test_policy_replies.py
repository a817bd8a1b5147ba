"""What leaves a client with a policy is checked and logged before it leaves, and nothing else leaves."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict

from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost
from fednc.client.link.work_hooks import CURRENT, Hooks, LocalProgress
from fednc.client.policy import audit, objections
from fednc.client.policy import rules as policy
from fednc.client.policy.audit import Audit, describe
from fednc.client.policy.guard import Guard
from fednc.client.policy.ledger import Ledger
from fednc.client.policy.owner import Owner
from fednc.client.policy.rules import SENTENCES, OwnerRefusalError
from fednc.common.wire import arrays, messages
from fednc.common.wire.failure_reasons import failure_of
from fednc.common.wire.messages import EVALUATE, HELLO, MEMORY, METRICS, STATS, SUMS, TRAIN
from fednc.protos import federation_pb2 as pb
from support.clients_with_policy import Site, open_but
from support.hostile.image_server import content_of, hostile_run, instruction, see_through, welcome

RUN = hostile_run(train={"batch": 8})
A, B = "a" * 64, "b" * 64


# ---- what leaves ---------------------------------------------------------------------------------------------


def test_every_reply_is_in_the_log_before_it_leaves(site: Site) -> None:
    host, replies = site.join(RUN), {}
    for kind in (HELLO, TRAIN, MEMORY, EVALUATE):
        replies[kind] = host.work(instruction(content_of(RUN), kind)).content
        line = site.log(outcome="sent", kind=kind)[-1]
        assert {key: line[key] for key in ("records", "bytes", "sha256")} == describe(replies[kind])
        assert line["digest"] == RUN.digest
        assert line["round"] == 1
    assert set(site.log(kind=EVALUATE)[0]["records"]) == {STATS, METRICS}
    assert set(site.log(kind=MEMORY)[0]["records"]) == {SUMS, METRICS}
    assert len({describe(content)["sha256"] for content in replies.values()}) == 4
    assert stat.S_IMODE((site.folder / "audit.jsonl").stat().st_mode) == 0o600
    assert len(site.log(outcome="declared")) == 1


def test_nothing_leaves_without_a_line_in_the_log(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    host = site.join(RUN)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit.os, "write", full)
    with pytest.raises(OwnerRefusalError, match="records"):
        host.work(instruction(content_of(RUN), TRAIN))


def test_the_log_does_not_grow_with_a_server_that_keeps_asking(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MOST_REFUSALS", 5)
    host = site.join(RUN)
    for _ in range(20):
        with pytest.raises(OwnerRefusalError, match="kind"):
            host.work(instruction(content_of(RUN), "query.secrets"))
    assert [line["refusals"] for line in site.log(outcome="refused")] == [1, 2, 3, 4, 5]


def test_an_audit_log_without_a_policy_refuses_and_changes_nothing(site: Site) -> None:
    plain = replace(site, policy=None)
    bare = AppHost(plain.config, app)
    bare.prepare(welcome(RUN, "bare"))
    wanted = describe(bare.work(instruction(content_of(RUN), EVALUATE, "bare")).content)
    host = plain.start()
    host.prepare(welcome(RUN, "run"))
    assert describe(host.work(instruction(content_of(RUN), EVALUATE)).content) == wanted
    assert plain.log(outcome="sent")[0]["sha256"] == wanted["sha256"]


class DishonestHost:
    """A host that answers a different question from the one it was asked."""

    def __init__(self, answer: Callable[[Message], RecordDict]) -> None:
        self._answer = answer

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        return pb.Declaration(examples=45, held_out=5, class_counts=[27, 18], device="cpu")

    def examples_having(self) -> list[int]:
        return [27, 18]

    def work(self, message: Message) -> Message:
        return Message(self._answer(message), reply_to=message)

    def leave(self) -> None:
        pass


def test_a_reply_is_judged_by_its_content(site: Site) -> None:
    """Sums of one example, of some of a class, of too few classes; updates of few examples or steps."""
    honest = site.join(RUN)
    sums = honest.work(instruction(content_of(RUN), MEMORY)).content
    update = honest.work(instruction(content_of(RUN), TRAIN)).content

    def altered(content: RecordDict, **changes: Any) -> RecordDict:
        copy = RecordDict(dict(content.items()))
        if "counts" in changes:
            found = messages.sums_of(content)
            counts = torch.tensor(changes["counts"], dtype=found.count_K.dtype)
            kept = found.sum_KD * (counts > 0).unsqueeze(1)
            copy[SUMS] = arrays.to_record({**found.to_tensors(), "sum_KD": kept, "count_K": counts})
        if "metrics" in changes:
            copy[METRICS] = type(content[METRICS])({**dict(content[METRICS]), **changes["metrics"]})
        return copy

    rules = open_but(floor={"sum_examples": 2, "classes": 2, "steps": 3, "batch": 8}, allow={"subsets": False})
    held = DishonestHost(lambda _: sums).prepare(pb.Welcome())

    def codes(kind: str, content: RecordDict, having: Sequence[int] = (27, 18)) -> set[str]:
        return {code for code, _ in objections.to_reply(rules, kind, content, held, having)}

    assert codes(MEMORY, sums) == set()
    assert codes(TRAIN, update) == set()
    assert codes(MEMORY, altered(sums, counts=[27, 1])) == {"sum", "subset"}
    assert codes(MEMORY, sums, having=(27, 1)) == {"sum"}  # 18 pixels of a class, all in one picture
    assert codes(MEMORY, altered(sums, counts=[27, 17])) == {"subset"}
    assert codes(MEMORY, altered(sums, counts=[27, 0])) == {"classes"}
    assert codes(TRAIN, altered(update, metrics={"num-examples": 44})) == {"examples"}
    assert codes(TRAIN, altered(update, metrics={"steps": 2})) == {"steps"}
    owner = Owner(rules, Ledger(site.folder / "sly"), site.data, 0.1)
    guard = Guard(
        DishonestHost(lambda _: altered(sums, counts=[27, 1])), Audit(site.folder / "audit.jsonl"), owner
    )
    guard.prepare(welcome(RUN, "sly"))
    with pytest.raises(OwnerRefusalError, match="sum"):
        guard.work(instruction(content_of(RUN), MEMORY))
    assert site.log(run_id="sly", outcome="sent") == []


def test_progress_does_not_reveal_the_loss_of_a_batch(site: Site) -> None:
    def reported() -> list[LocalProgress]:
        steps: list[LocalProgress] = []
        CURRENT.set(Hooks(report=steps.append))
        host = site.join(RUN)
        host.work(instruction(content_of(RUN), TRAIN))
        host.leave()
        return steps

    quiet = reported()
    assert quiet
    assert {step.loss for step in quiet} == {0.0}
    assert site.log(outcome="sent", kind=TRAIN)[0]["progress_reports"] == len(quiet)
    site.policy = open_but(allow={"progress_loss": True})
    assert all(step.loss > 0 for step in reported())


def test_a_round_trains_from_one_model_only(site: Site) -> None:
    host = site.join(RUN)
    host.work(instruction(content_of(RUN), TRAIN))
    host.work(instruction(content_of(RUN), TRAIN))  # as after a restart of the server
    other = see_through(RUN)
    other.state_dict()["projection.bias"].add_(1)
    with pytest.raises(OwnerRefusalError, match="again"):
        host.work(instruction(content_of(RUN, model=other), TRAIN))
    with pytest.raises(OwnerRefusalError, match="rounds"):
        host.work(instruction(content_of(RUN, RUN.all_rounds + 1), TRAIN))


def test_what_a_server_is_told_depends_on_the_code_only() -> None:
    for code, sentence in SENTENCES.items():
        error = OwnerRefusalError(code, "17 examples of class 'hiv-positive'")
        assert failure_of(error) == (policy.REFUSED, f"{code}: {sentence}")
        assert "hiv" not in str(error)


def test_one_instruction_does_not_affect_the_next(site: Site) -> None:
    hooks = Hooks()
    CURRENT.set(hooks)
    host = site.join(RUN)
    for server_round in (1, 2):
        host.work(instruction(content_of(RUN, server_round), TRAIN))
    assert CURRENT.get() is hooks
