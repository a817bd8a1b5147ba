"""The owner's policy by itself: its file, what it remembers, what it logs, what the command shows of it."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict
from hostile_server import content_of, hostile_run, instruction, see_through, welcome, write_images
from hypothesis import given
from hypothesis import strategies as st
from owners import STRICT, Site, open_but, strict_but
from typer.testing import CliRunner

from fednc.cli.main import app as command
from fednc.client import audit, foresight, objections, policy, resident
from fednc.client.app import app
from fednc.client.audit import Audit, describe
from fednc.client.guard import Guard, Owner
from fednc.client.hooks import CURRENT, Hooks, Step
from fednc.client.host import AppHost
from fednc.client.ledger import Ledger, data_fingerprint
from fednc.client.policy import SENTENCES, OwnerRefusalError, Policy, Quota, read_policy
from fednc.client.withhold import fitting_batch
from fednc.common import arrays, exchange
from fednc.common.errors import ConfigError
from fednc.common.exchange import EVALUATE, HELLO, MEMORY, METRICS, STATS, SUMS, TRAIN
from fednc.common.presets import PRESETS
from fednc.protos import federation_pb2 as pb

RUN = hostile_run(train={"batch": 8})
A, B = "a" * 64, "b" * 64


@pytest.fixture(autouse=True)
def _every_client_is_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_RESIDENTS", resident.Residents())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path / "site", open_but())
    write_images(made.images, (30, 20))
    return made


def attending(site: Site) -> Guard:
    host = site.start()
    host.prepare(welcome(RUN, "run"))
    return host


# ---- the file ------------------------------------------------------------------------------------------------


def test_the_strict_example_is_read_and_allows_no_method_that_needs_class_sums() -> None:
    strict, folder = read_policy(STRICT)
    assert folder == STRICT.with_name("strict.toml.state")
    assert strict == strict_but()
    assert strict.runs.methods
    for name in strict.runs.methods:
        assert name in PRESETS
        assert not hostile_run(method={"name": name, "readout": PRESETS[name]["readout"]}).method.uses_memory


def test_an_empty_policy_allows_neither_gradients_nor_class_sums_nor_subsets() -> None:
    allowed = {key for key, value in Policy().allow.model_dump().items() if value}
    assert allowed == {"evaluation"}
    assert Policy().runs.pin_first
    assert Policy().quota.runs_per_day == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[floor]\nbatches = 3", "floor.batches: .* no such key; docs/deploy.md lists them all"),
        ("[floor]\nbatch = -1", "floor.batch: "),
        ("[runs]\ndigests = ['abc']", "runs.digests.0: "),
        ("[floor", "not TOML"),
    ],
)
def test_a_policy_with_a_wrong_key_or_value_is_an_error_that_names_it(
    text: str, wanted: str, tmp_path: Path
) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ConfigError, match=wanted):
        read_policy(tmp_path / "p.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_policy(tmp_path / "none.toml")


# ---- what is remembered --------------------------------------------------------------------------------------


def test_records_are_their_owners_alone_and_outlive_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "records"
    first = Ledger(folder)
    quota = Quota(runs_per_day=2, queries_per_day=3, queries=4)
    assert [first.admit_run("data", digest, "run", quota, pin=False) for digest in (A, B)] == ["", ""]
    assert [first.count_query("data", quota) for _ in range(3)] == ["", "", ""]
    again = Ledger(folder)
    assert again.secret == first.secret
    assert again.admit_run("data", A, "run", quota, pin=False) == "", "the same run, as after a restart"
    assert again.admit_run("data", A, "run again", quota, pin=False) == "runs-quota"
    assert again.count_query("data", quota) == "queries-quota"
    assert again.count_query("other data", quota) == ""
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"records": 0o700, "state.json": 0o600, "lock": 0o600}


def test_a_day_ends_a_daily_quota_and_no_other_and_never_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, ledger, quota = time.time(), Ledger(tmp_path), Quota(queries_per_day=2, queries=3)
    assert [ledger.count_query("data", quota) for _ in range(3)] == ["", "", "queries-quota"]
    monkeypatch.setattr(time, "time", lambda: now - 5 * 86400)
    assert ledger.count_query("data", quota) == "queries-quota", "a clock put back buys nothing"
    monkeypatch.setattr(time, "time", lambda: now + 86400)
    assert [ledger.count_query("data", quota) for _ in range(2)] == ["", "queries-quota"]


def test_looking_changes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for digest in (A, B):
        assert ledger.admit_run("data", digest, "run", Quota(), pin=True, keep=False) == ""
    assert ledger.admit_run("data", A, "run", Quota(), pin=True) == ""
    assert ledger.admit_run("data", B, "run", Quota(), pin=True, keep=False) == "pinned"


def test_damaged_records_are_no_new_beginning(tmp_path: Path) -> None:
    Ledger(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        Ledger(tmp_path)


def test_data_is_known_by_what_it_is_not_by_where_it_lies(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / "ill").mkdir(parents=True)
        (tmp_path / name / "ill" / "1.png").write_bytes(b"image")
    one, other = (data_fingerprint(f"folder:{tmp_path / name}") for name in ("one", "other"))
    assert one == other
    (tmp_path / "other" / "ill" / "1.png").write_bytes(b"imagf")
    assert data_fingerprint(f"folder:{tmp_path / 'other'}") != one
    assert data_fingerprint("digits") != data_fingerprint("hf:digits")
    file = tmp_path / "one" / "ill" / "1.png"
    assert data_fingerprint(f"npz:{file}") == data_fingerprint(f"npz:{file.rename(tmp_path / 'moved.png')}")


def test_quotas_hold_over_a_restart_and_for_a_copy_of_the_data(site: Site, tmp_path: Path) -> None:
    site.policy = open_but(quota={"queries": 1})
    host = attending(site)
    host.work(instruction(content_of(RUN), TRAIN))
    host.leave()
    copy = tmp_path / "copy.npz"
    copy.write_bytes(site.images.read_bytes())
    moved = replace(site)
    moved.data = f"npz:{copy}"
    with pytest.raises(OwnerRefusalError, match="queries-quota"):
        attending(moved).work(instruction(content_of(RUN, 2), TRAIN))


def test_another_share_held_out_is_refused(site: Site) -> None:
    attending(site).leave()
    with pytest.raises(ConfigError, match=r"--val-share 0\.2: 0\.1 of this data was held out"):
        attending(replace(site, val_share=0.2))


# ---- which examples ------------------------------------------------------------------------------------------


@given(examples=st.integers(1, 500), batch=st.integers(1, 200), least=st.integers(0, 60))
def test_no_batch_of_an_epoch_is_smaller_than_the_least(examples: int, batch: int, least: int) -> None:
    found = fitting_batch(examples, max(batch, least), least)
    assert found >= batch
    last = examples % found
    assert last == 0 or last >= min(least, examples) or least <= 1
    assert least > 1 or found == batch


def trained(host: AppHost, seed: int = 0) -> dict[str, Any]:
    run = hostile_run(seed=seed, train={"batch": 8})
    host.prepare(welcome(run, f"run-{seed}"))
    reply = host.work(instruction(content_of(run), TRAIN, f"run-{seed}"))
    metrics = reply.content[METRICS]
    host.leave()
    return dict(metrics)


def test_a_least_batch_changes_the_steps_and_zero_changes_nothing(site: Site) -> None:
    steps = [trained(AppHost(replace(site.config, min_batch=least), app))["steps"] for least in (0, 6, 12)]
    assert steps == [4 * 6, 4 * 5, 4 * 3]  # 45 examples: 8 leave 5; 9 leave none; 15 leave none


def test_which_examples_are_held_out_is_the_owners_secret(site: Site) -> None:
    def held_out(seed: int, **settings: Any) -> bytes:
        host = AppHost(replace(site.config, **settings), app)
        run = RUN.model_copy(update={"seed": seed})
        host.prepare(welcome(run, f"{seed}/{settings}"))
        assert host._context is not None
        pixels: torch.Tensor = resident.resident(host._context, run).held_out.pixel_NCHW  # type: ignore[attr-defined]
        return pixels.numpy().tobytes()

    assert held_out(1) != held_out(2)
    assert held_out(1, secret=A) == held_out(2, secret=A) != held_out(1, secret=B)


# ---- what leaves ---------------------------------------------------------------------------------------------


def test_every_reply_is_in_the_log_before_it_leaves(site: Site) -> None:
    host, replies = attending(site), {}
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
    host = attending(site)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit.os, "write", full)
    with pytest.raises(OwnerRefusalError, match="records"):
        host.work(instruction(content_of(RUN), TRAIN))


def test_the_log_does_not_grow_with_a_server_that_goes_on_asking(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MOST_REFUSALS", 5)
    host = attending(site)
    for _ in range(20):
        with pytest.raises(OwnerRefusalError, match="kind"):
            host.work(instruction(content_of(RUN), "query.secrets"))
    assert [line["refusals"] for line in site.log(outcome="refused")] == [1, 2, 3, 4, 5]


def test_an_audit_log_alone_refuses_nothing_and_changes_no_reply(site: Site) -> None:
    plain = replace(site, policy=None)
    bare = AppHost(plain.config, app)
    bare.prepare(welcome(RUN, "bare"))
    wanted = describe(bare.work(instruction(content_of(RUN), EVALUATE, "bare")).content)
    host = plain.start()
    host.prepare(welcome(RUN, "run"))
    assert describe(host.work(instruction(content_of(RUN), EVALUATE)).content) == wanted
    assert plain.log(outcome="sent")[0]["sha256"] == wanted["sha256"]


class Sly:
    """A host that answers with something else than it was asked for: what leaves is judged by what it is."""

    def __init__(self, answer: Callable[[Message], RecordDict]) -> None:
        self._answer = answer

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        return pb.Declaration(examples=45, held_out=5, class_counts=[27, 18], device="cpu")

    def work(self, message: Message) -> Message:
        return Message(self._answer(message), reply_to=message)

    def leave(self) -> None:
        pass


def test_a_reply_is_measured(site: Site) -> None:
    """Sums of one example, of some of a class, of too few classes; updates of few examples or steps."""
    honest = attending(site)
    sums = honest.work(instruction(content_of(RUN), MEMORY)).content
    update = honest.work(instruction(content_of(RUN), TRAIN)).content

    def altered(content: RecordDict, **changes: Any) -> RecordDict:
        copy = RecordDict(dict(content.items()))
        if "counts" in changes:
            found = exchange.sums_of(content)
            counts = torch.tensor(changes["counts"], dtype=found.count_K.dtype)
            kept = found.sum_KD * (counts > 0).unsqueeze(1)
            copy[SUMS] = arrays.to_record({**found.to_tensors(), "sum_KD": kept, "count_K": counts})
        if "metrics" in changes:
            copy[METRICS] = type(content[METRICS])({**dict(content[METRICS]), **changes["metrics"]})
        return copy

    rules = open_but(floor={"sum_examples": 2, "classes": 2, "steps": 3, "batch": 8}, allow={"subsets": False})
    held = Sly(lambda _: sums).prepare(pb.Welcome())

    def codes(kind: str, content: RecordDict) -> set[str]:
        return {code for code, _ in objections.to_reply(rules, kind, content, held)}

    assert codes(MEMORY, sums) == set()
    assert codes(TRAIN, update) == set()
    assert codes(MEMORY, altered(sums, counts=[27, 1])) == {"sum", "subset"}
    assert codes(MEMORY, altered(sums, counts=[27, 17])) == {"subset"}
    assert codes(MEMORY, altered(sums, counts=[27, 0])) == {"classes"}
    assert codes(TRAIN, altered(update, metrics={"num-examples": 44})) == {"examples"}
    assert codes(TRAIN, altered(update, metrics={"steps": 2})) == {"steps"}
    owner = Owner(rules, Ledger(site.folder / "sly"), site.data, 0.1)
    guard = Guard(Sly(lambda _: altered(sums, counts=[27, 1])), Audit(site.folder / "audit.jsonl"), owner)
    guard.prepare(welcome(RUN, "sly"))
    with pytest.raises(OwnerRefusalError, match="sum"):
        guard.work(instruction(content_of(RUN), MEMORY))
    assert site.log(run_id="sly", outcome="sent") == []


def test_progress_tells_the_loss_of_no_batch(site: Site) -> None:
    def reported() -> list[Step]:
        steps: list[Step] = []
        CURRENT.set(Hooks(report=steps.append))
        host = attending(site)
        host.work(instruction(content_of(RUN), TRAIN))
        host.leave()
        return steps

    quiet = reported()
    assert quiet
    assert {step.loss for step in quiet} == {0.0}
    assert site.log(outcome="sent", kind=TRAIN)[0]["progress_reports"] == len(quiet)
    site.policy = open_but(allow={"progress_loss": True})
    assert all(step.loss > 0 for step in reported())


def test_a_round_is_trained_from_one_model(site: Site) -> None:
    host = attending(site)
    host.work(instruction(content_of(RUN), TRAIN))
    host.work(instruction(content_of(RUN), TRAIN))  # as after a restart of the server
    other = see_through(RUN)
    other.state_dict()["projection.bias"].add_(1)
    with pytest.raises(OwnerRefusalError, match="again"):
        host.work(instruction(content_of(RUN, model=other), TRAIN))
    with pytest.raises(OwnerRefusalError, match="rounds"):
        host.work(instruction(content_of(RUN, RUN.all_rounds + 1), TRAIN))


def test_what_a_server_is_told_depends_on_nothing_but_the_code() -> None:
    for code, sentence in SENTENCES.items():
        error = OwnerRefusalError(code, "17 examples of class 'hiv-positive'")
        assert (error.kind, str(error)) == (policy.REFUSED, f"{code}: {sentence}")
        assert "hiv" not in str(error)


# ---- the command ---------------------------------------------------------------------------------------------


def test_a_dry_run_finds_what_the_policy_would_refuse_and_writes_nothing_down(site: Site) -> None:
    rules = strict_but()
    owner = Owner(rules, Ledger(site.records), site.data, 0.1)
    host = foresight.Foresight(AppHost(owner.bind(site.config), app), owner)
    host.prepare(welcome(hostile_run(method={"name": "fednc"}, init={"kind": "nio"}), "run"))
    assert {code for code, _ in host.barring} == {"method", "examples"}
    assert {code for code, _ in host.coming} == {"gradients", "class-sums", "examples"}
    assert json.loads((site.records / "state.json").read_text())["data"] == {}


def test_the_help_teaches_and_a_foreign_app_has_no_policy(tmp_path: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
    text = runner.invoke(command, ["client", "--help"]).output
    for words in ("--policy", "--audit", "can say no", "examples/policies/strict.toml", "--dry-run"):
        assert words in text
    (tmp_path / "app").mkdir()
    arguments = ["client", "--server", "127.0.0.1:1", "--app", str(tmp_path / "app"), "--policy", str(STRICT)]
    refused = runner.invoke(command, arguments)
    assert refused.exit_code == ConfigError.exit_code
    assert "cannot judge those of --app" in refused.output
