"""Gates and verdicts: about the digest that was seen, signed by whom they name, and no change goes unnoticed."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from fednc.cli.main import app
from fednc.common.errors import ConfigError, RefusedError
from fednc.common.security import signatures
from fednc.common.security.authority import Authority
from fednc.common.security.credentials import Holder, Role
from fednc.common.security.signatures import Signature, Signer, Trust
from fednc.ops.approvals.box import APPROVED, CONSOLE, REJECTED, ApprovalBox, Request, Verdict
from fednc.ops.approvals.chained_file import EVENTS, HEAD, ChainedFile, ChangedRecordError

A, B = "a" * 64, "b" * 64
GATE = "digits: release"
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority.create(tmp_path_factory.mktemp("pki") / "ca", "test")
    made.issue_server(["localhost"], DAY)
    for name in ("mara", "nils"):
        made.issue_certificate(Holder(Role.OPERATOR, name), DAY)
    made.issue_certificate(Holder(Role.NODE, "clinic"), DAY)
    return made


@pytest.fixture
def trust(authority: Authority) -> Trust:
    return Trust.from_folder(authority.server_folder)


def operator(authority: Authority, name: str, role: Role = Role.OPERATOR) -> Signer:
    return Signer.from_folder(authority.holder_folder(Holder(role, name)))


def waiting(folder: Path, trust: Trust | None = None, *, signed: bool = False) -> ApprovalBox:
    box = ApprovalBox(folder / "box", trust)
    box.request(Request(A, GATE, {"accuracy": 0.97, "worst client": "anna"}, signed))
    return box


def cli(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done


# ---- which digest ---------------------------------------------------------------------------------------------


def test_a_gate_waits_until_its_digest_is_decided(tmp_path: Path) -> None:
    box = waiting(tmp_path)
    assert [each.request.digest for each in box.pending()] == [A]
    assert box.verdict(A) is None
    given = box.decide(A, APPROVED, "mara", "looks right")
    again = ApprovalBox(box.folder)
    assert again.verdict(A) == given
    assert (given.signed, given.approved, again.pending()) == ("unsigned", True, [])


def test_another_digest_is_refused(tmp_path: Path) -> None:
    box = waiting(tmp_path)
    with pytest.raises(RefusedError, match=f"no gate waits for {'b' * 16}: digits: release waits for {A}"):
        box.decide(B, APPROVED, "mara")
    assert box.verdict(A) is None
    assert box.verdict(B) is None


def test_a_newer_request_of_the_gate_outdates_what_somebody_saw(tmp_path: Path) -> None:
    box = waiting(tmp_path)
    box.decide(A, APPROVED, "mara")
    box.request(Request(B, GATE, {}))
    assert box.verdict(A) is None, "the gate has asked about something else since"
    with pytest.raises(RefusedError, match="no gate waits for"):
        box.decide(A, APPROVED, "mara")
    box.request(Request(A, GATE, {}))
    assert box.verdict(A) is None, "asked anew, so answered anew"


def test_the_same_request_again_changes_nothing(tmp_path: Path) -> None:
    box = waiting(tmp_path)
    before = (box.folder / EVENTS).read_bytes()
    box.request(Request(A, GATE, {"accuracy": 0.1}))
    assert (box.folder / EVENTS).read_bytes() == before
    box.decide(A, REJECTED, "mara", "a client is missing")
    before = (box.folder / EVENTS).read_bytes()
    box.request(Request(A, GATE, {}))
    assert (box.folder / EVENTS).read_bytes() == before


def test_a_gate_that_wants_a_signature_by_now_asks_anew(tmp_path: Path, authority: Authority) -> None:
    box = waiting(tmp_path)
    box.decide(A, APPROVED, "mara")
    box.request(Request(A, GATE, {}, signed=True))
    [asked] = box.pending()
    assert asked.request.signed
    with pytest.raises(RefusedError, match="signed verdicts only"):
        box.decide(A, APPROVED, "mara", change=True)
    given = box.decide(A, APPROVED, "mara", signer=operator(authority, "mara"))
    for signed in (True, False, True):  # a signature is enough for both
        box.request(Request(A, GATE, {}, signed=signed))
        assert (box.verdict(A), box.pending()) == (given, [])


def test_a_gate_that_wants_no_signature_any_more_takes_a_verdict_without(tmp_path: Path) -> None:
    box = waiting(tmp_path, signed=True)
    box.request(Request(A, GATE, {}))
    assert box.decide(A, APPROVED, "mara").approved


def test_facts_with_numbers_as_keys_are_read_back(tmp_path: Path) -> None:
    box = waiting(tmp_path)
    box.request(Request(B, GATE, {"by class": {9: 0.5, 10: 0.25, 100: 1.0}}))
    [asked] = box.pending()
    assert asked.request.facts == {"by class": {"9": 0.5, "10": 0.25, "100": 1.0}}
    assert box.decide(B, APPROVED, "mara").approved


def test_a_second_verdict_needs_to_be_meant(tmp_path: Path) -> None:
    box = waiting(tmp_path)
    box.decide(A, REJECTED, "mara", "no")
    with pytest.raises(RefusedError, match=r"was rejected by 'mara' at .*--change"):
        box.decide(A, APPROVED, "nils")
    box.decide(A, APPROVED, "nils", change=True)
    assert (box.verdict(A) or pytest.fail("no verdict")).who == "nils"
    assert [each.who for each in box.verdicts()] == ["mara", "nils"]


def test_one_digest_at_two_gates_needs_the_gate_named(tmp_path: Path) -> None:
    box = waiting(tmp_path)
    box.request(Request(A, "digits: deploy", {}))
    with pytest.raises(RefusedError, match="waits at several gates"):
        box.decide(A, APPROVED, "mara")
    box.decide(A, APPROVED, "mara", subject="digits: deploy")
    assert box.verdict(A, GATE) is None
    assert box.verdict(A, "digits: deploy") is not None


@pytest.mark.parametrize(
    ("who", "reason", "verdict"), [("", "", APPROVED), ("m\n", "", APPROVED), ("m", "", REJECTED), ("m", "", "ok")]
)
def test_an_answer_that_says_nothing_is_refused(tmp_path: Path, who: str, reason: str, verdict: str) -> None:
    with pytest.raises(ConfigError):
        waiting(tmp_path).decide(A, verdict, who, reason)


@pytest.mark.parametrize(
    "request_", [Request("b", GATE, {}), Request(A, "", {}), Request(A, GATE, {"x": float("nan")})]
)
def test_a_request_that_cannot_be_shown_is_refused(tmp_path: Path, request_: Request) -> None:
    with pytest.raises(ConfigError):
        ApprovalBox(tmp_path).request(request_)


# ---- signatures -----------------------------------------------------------------------------------------------


def test_an_operator_signs(tmp_path: Path, authority: Authority, trust: Trust) -> None:
    box = waiting(tmp_path, trust, signed=True)
    box.decide(A, APPROVED, "mara", "fine", operator(authority, "mara"))
    assert (box.verdict(A) or pytest.fail("no verdict")).signed == "operator 'mara'"


def test_the_server_signs_for_a_login_at_its_console_only(
    tmp_path: Path, authority: Authority, trust: Trust
) -> None:
    box = waiting(tmp_path, trust, signed=True)
    server = Signer.from_folder(authority.server_folder)
    with pytest.raises(RefusedError, match="not theirs"):
        box.decide(A, APPROVED, "mara", "", server)
    with pytest.raises(RefusedError, match="not theirs"):
        box.decide(A, APPROVED, "mara", "", operator(authority, "mara"), how=CONSOLE)
    box.decide(A, APPROVED, "mara", "", server, how=CONSOLE)
    assert (box.verdict(A) or pytest.fail("no verdict")).signed == "server for 'mara'"


def test_nobody_signs_for_somebody_else(tmp_path: Path, authority: Authority, trust: Trust) -> None:
    for signer in (operator(authority, "nils"), operator(authority, "clinic", Role.NODE)):
        with pytest.raises(RefusedError, match="not theirs"):
            waiting(tmp_path, trust).decide(A, APPROVED, "mara", "", signer)
    with pytest.raises(RefusedError, match="not theirs"):
        waiting(tmp_path, trust).decide(A, APPROVED, "clinic", "", operator(authority, "clinic", Role.NODE))


def test_a_gate_may_demand_signatures(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="signed verdicts only"):
        waiting(tmp_path, signed=True).decide(A, APPROVED, "mara")


def test_a_revoked_operator_is_refused_before_and_after(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "ca", "test")
    made.issue_certificate(Holder(Role.OPERATOR, "mara"), DAY)
    signer, trust = operator(made, "mara"), Trust.from_folder(tmp_path / "ca")
    box = waiting(tmp_path, trust)
    box.decide(A, APPROVED, "mara", "", signer)
    made.revoke("mara")
    with pytest.raises(RefusedError, match="revoked"):
        box.verdict(A)
    with pytest.raises(RefusedError, match="revoked"):
        box.decide(A, APPROVED, "mara", "", signer, change=True)


@pytest.mark.parametrize("lifetime", [DAY, -2 * DAY])
def test_a_stranger_or_an_expired_certificate_is_refused(
    tmp_path: Path, trust: Trust, lifetime: timedelta
) -> None:
    other = Authority.create(tmp_path / "other", "test")
    other.issue_certificate(Holder(Role.OPERATOR, "mara"), lifetime)
    own = trust if lifetime > timedelta() else Trust.from_folder(tmp_path / "other")
    with pytest.raises(RefusedError, match=r"not issued by|not in force"):
        waiting(tmp_path, own).decide(A, APPROVED, "mara", "", operator(other, "mara"))


def self_written(box: ApprovalBox, signer: Signer | None, **parts: Any) -> None:
    """A verdict that somebody appends to the record without asking the box."""
    (asked,) = box.pending()
    given = Verdict(A, APPROVED, "mara", "command line", "", asked.at, None, asked.request.subject, asked.sha256)
    given = replace(given, **parts)
    if signer is not None:
        given = replace(given, signature=signer.sign("verdict", given.statement))
    with ChainedFile(box.folder).appending() as file:
        file.add({"kind": "verdict", "format": 1, **asdict(given)})


@pytest.mark.parametrize("asks_again", [False, True])
def test_an_expired_key_cannot_answer_what_was_asked_after_its_time(tmp_path: Path, asks_again: bool) -> None:
    """Not even if its holder adds a request of that time too: the record has later events before it."""
    made = Authority.create(tmp_path / "ca", "test")
    made.issue_certificate(Holder(Role.OPERATOR, "mara"), timedelta(minutes=-1))  # in force until a minute ago
    signer, box = operator(made, "mara"), waiting(tmp_path, Trust.from_folder(tmp_path / "ca"))
    (asked,) = box.pending()
    in_force = (datetime.now(UTC) - timedelta(minutes=2)).isoformat(timespec="milliseconds")
    if asks_again:
        with ChainedFile(box.folder).appending() as file:
            file.add({"kind": "request", "format": 1, "at": in_force, **asdict(asked.request)})
    self_written(box, signer, at=in_force)
    with pytest.raises(RefusedError, match="before the gate asked"):
        box.verdict(A)
    (problem,) = box.problems(box.verdicts())
    assert "before the gate asked" in problem


def test_a_clock_that_is_behind_that_of_the_gate_refuses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = waiting(tmp_path)
    monkeypatch.setattr(signatures, "now", lambda: time.time() - 3600)
    box.decide(A, APPROVED, "mara")
    assert box.verdict(A) is not None


@pytest.mark.parametrize(
    "bad",
    [
        {"signature": Signature("junk", "x")},
        {"signature": Signature("\ud800", "x")},
        {"at": "yesterday"},
        {"at": "2026-01-01T00:00:00"},
    ],
)
def test_a_verdict_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, bad: dict[str, Any]) -> None:
    box = waiting(tmp_path)
    self_written(box, None, **bad)
    (given,) = box.verdicts()
    assert given.signed in ("unsigned", "a certificate that cannot be read")
    assert box.problems([given]) != [""]
    box.request(Request(B, "another gate", {}))
    assert [each.request.digest for each in box.pending()] == [B]
    with pytest.raises(RefusedError):
        box.verdict(A)
    cli("gates", "--folder", box.folder)


CHANGES: dict[str, Callable[[Verdict], Verdict]] = {
    "digest": lambda v: replace(v, digest=B),
    "verdict": lambda v: replace(v, verdict=REJECTED),
    "who": lambda v: replace(v, who="nils"),
    "how": lambda v: replace(v, how="script"),
    "reason": lambda v: replace(v, reason="other"),
    "at": lambda v: replace(v, at=v.at.replace("20", "21", 1)),
    "subject": lambda v: replace(v, subject="elsewhere: release"),
    "request": lambda v: replace(v, request="0" * 64),
}


@pytest.mark.parametrize("part", CHANGES)
def test_the_signature_covers_every_part(tmp_path: Path, authority: Authority, trust: Trust, part: str) -> None:
    given = waiting(tmp_path, trust).decide(A, APPROVED, "mara", "fine", operator(authority, "mara"))
    given.check(trust)
    with pytest.raises(RefusedError):
        CHANGES[part](given).check(trust)
    assert Verdict.from_json(json.loads(json.dumps(given.to_json()))) == given


def test_a_verdict_cannot_be_replayed_at_another_gate(tmp_path: Path, authority: Authority, trust: Trust) -> None:
    """The other gate asks about the same digest under the same name: the verdict still answers one request
    only.
    """
    mine = waiting(tmp_path / "mine", trust)
    mine.decide(A, APPROVED, "mara", "", operator(authority, "mara"))
    event = ChainedFile(mine.folder).read()[-1].event
    other = waiting(tmp_path / "other", trust)
    with ChainedFile(other.folder).appending() as file:
        file.add(event)
    with pytest.raises(ChangedRecordError, match="no gate was waiting for"):
        other.verdict(A)
    shutil.rmtree(other.folder)
    other = waiting(tmp_path / "other", trust)
    with ChainedFile(other.folder).appending() as file:
        file.add({**event, "request": file.events[0].sha256})
    with pytest.raises(RefusedError, match="does not belong to this statement"):
        other.verdict(A)


# ---- the record -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    box = waiting(tmp_path_factory.mktemp("record"))
    box.decide(A, REJECTED, "mara", "no")
    box.request(Request(B, GATE, {"accuracy": 0.98}))
    box.decide(B, APPROVED, "nils")
    return box.folder


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_changed_byte_is_noticed(
    record: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    copy = Path(shutil.copytree(record, tmp_path_factory.mktemp("copy") / "box"))
    path = copy / data.draw(st.sampled_from([EVENTS, HEAD]))
    old = path.read_bytes()
    place = data.draw(st.integers(0, len(old) - 1))
    new = data.draw(st.integers(0, 255).filter(lambda value: value != old[place]))
    path.write_bytes(old[:place] + bytes([new]) + old[place + 1 :])
    with pytest.raises(ChangedRecordError):
        ApprovalBox(copy).verdict(B)


@pytest.mark.parametrize("kept", [[0, 1, 2], [0], [], [0, 2, 3], [0, 1, 3, 2], [0, 1, 1, 2, 3], [1, 2, 3]])
def test_missing_moved_and_repeated_lines_are_noticed(record: Path, tmp_path: Path, kept: list[int]) -> None:
    copy = Path(shutil.copytree(record, tmp_path / "box"))
    lines = (copy / EVENTS).read_bytes().splitlines(keepends=True)
    (copy / EVENTS).write_bytes(b"".join(lines[n] for n in kept))
    with pytest.raises(ChangedRecordError):
        ApprovalBox(copy).pending()


def test_a_missing_file_is_noticed(record: Path, tmp_path: Path) -> None:
    for name in (EVENTS, HEAD):
        copy = Path(shutil.copytree(record, tmp_path / name))
        (copy / name).unlink()
        with pytest.raises(ChangedRecordError):
            ApprovalBox(copy).pending()


def test_a_killed_writer_does_no_harm(record: Path, tmp_path: Path) -> None:
    """At each byte of an event's line, and before the head names it: what was acknowledged stays, and work goes
    on.
    """
    before = Path(shutil.copytree(record, tmp_path / "before"))
    after = Path(shutil.copytree(record, tmp_path / "after"))
    ApprovalBox(after).request(Request(A, "digits: deploy", {}))
    line = (after / EVENTS).read_bytes()[len((before / EVENTS).read_bytes()) :]
    for written in range(0, len(line) + 1, 20):
        copy = Path(shutil.copytree(before, tmp_path / str(written)))
        with (copy / EVENTS).open("ab") as file:
            file.write(line[:written])
        box = ApprovalBox(copy)
        assert (box.verdict(B) or pytest.fail("no verdict")).who == "nils"
        box.request(Request(A, "digits: deploy", {}))
        assert [each.request.subject for each in box.pending()] == ["digits: deploy"]


def test_processes_append_at_once(tmp_path: Path) -> None:
    children = []
    for name in range(4):
        child = os.fork()
        if child == 0:
            try:
                for number in range(10):
                    ApprovalBox(tmp_path / "box").request(Request(A, f"{name} {number}", {}))
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert len(ApprovalBox(tmp_path / "box").pending()) == 40


# ---- the commands ---------------------------------------------------------------------------------------------


def test_a_person_looks_and_decides(tmp_path: Path, authority: Authority) -> None:
    box = waiting(tmp_path, signed=True)
    certs, place = authority.holder_folder(Holder(Role.OPERATOR, "mara")), ("--folder", box.folder)
    shown = cli("gates", *place)
    assert A in shown.output
    assert "0.97" in shown.output
    assert "signed verdicts only" in cli("approve", A, *place, code=6).output
    assert "no gate waits" in cli("approve", B, *place, "--certs", certs, code=6).output
    assert "no gate waits" in cli("approve", A[:8], *place, "--certs", certs, code=6).output
    cli("approve", A[:16], *place, "--certs", certs, "--trust", authority.server_folder)
    result = json.loads(cli("gates", *place, "--json", "-").stdout)
    assert [(one["who"], one["signed"]) for one in result["verdicts"]] == [("mara", "operator 'mara'")]
    stranger = Authority.create(tmp_path / "stranger", "test").server_folder
    told = json.loads(cli("gates", *place, "--trust", stranger, "--json", "-").stdout)
    assert "not issued by" in told["verdicts"][0]["problem"]
    assert cli("reject", A, *place, "--reason", "too late", "--certs", certs, code=6)


def test_a_token_cannot_sign(tmp_path: Path) -> None:
    box = waiting(tmp_path)
    (tmp_path / "token").write_text("operator.mara.x")
    assert "a token cannot sign" in cli("approve", A, "--folder", box.folder, "--certs", tmp_path, code=2).output
