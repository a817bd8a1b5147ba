"""Steps of a pipeline: done once per inputs, in order, with a gate that opens for the digest that was seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from fednc.cli.main import app
from fednc.cli.pipeline import search_in_process
from fednc.common import plugins
from fednc.common.errors import ConfigError, DataError, RefusedError, RunFailedError
from fednc.common.security.authority import Authority
from fednc.ops import quarantine
from fednc.ops.pipelines import deployment, gate, phases
from fednc.ops.pipelines.digests import data_digest, digest_of
from fednc.ops.pipelines.journal import Cause, PipelineRun
from fednc.ops.pipelines.look import look
from fednc.ops.pipelines.over_link import host_of, search_over_link
from fednc.ops.pipelines.pipeline_file import PipelineFile
from fednc.ops.pipelines.runner import Runner, inputs_of
from fednc.ops.pipelines.steps import STEPS
from fednc.ops.pipelines.triggers import due
from fednc.ops.pipelines.work import (
    Carriers,
    GateRejectedError,
    GateWaitsError,
    PipelineWork,
    RunOrder,
    SearchOrder,
)
from fednc.ops.registry.lineage import lineage_of
from fednc.ops.registry.registration import register
from fednc.ops.registry.registry import ModelRegistry
from fednc.ops.search.study import SearchView
from fednc.server.storage.events import ClientDrifts
from support.fewshot_run import SESSIONS
from support.fewshot_run import config as fewshot
from support.installed_plugins import Site
from support.installed_plugins import site as site
from support.small_pipelines import ASKED, SmallPipeline

pytest.importorskip("mlflow")


@pytest.fixture(autouse=True)
def _a_store_from_the_start(empty_store: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "one", tmp_path / "two"):
        shutil.copytree(empty_store, folder / "models")


def approve(pipeline: SmallPipeline, verdict: str = "approved") -> str:
    """Answer the gate that waits; returns the digest."""
    (waiting,) = pipeline.box.pending()
    pipeline.box.decide(waiting.request.digest, verdict, "mara", "a test")
    return waiting.request.digest


def registry(pipeline: SmallPipeline) -> ModelRegistry:
    return ModelRegistry(str(pipeline.folder / "models"))


def test_each_step_is_done_once_and_a_change_redoes_what_depends_on_it(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path)
    pipeline()
    assert pipeline.states() == {
        "check": "done",
        "search": "skipped",
        "statistics": "done",
        "init": "skipped",
        "train": "done",
        "sessions": "skipped",
        "evaluate": "done",
        "gate": "skipped",
        "register": "done",
        "deploy": "done",
    }
    again = pipeline()
    assert (again.number, len(pipeline.carrier.orders)) == (2, 1)
    assert {state for state in pipeline.states().values() if state != "skipped"} == {"cached"}
    pipeline.new_data("bert")
    assert pipeline(Cause("data", "bert")).number == 3
    assert {state for state in pipeline.states().values() if state != "skipped"} == {"done"}
    found = registry(pipeline)
    assert found.aliases("toy") == {"challenger": 2, "champion": 2}
    assert lineage_of(found, "toy@champion")["moves"]["champion"][-1]["who"] == "pipeline toy/3"
    assert "version 1, which is served" in pipeline.journal.latest().step("evaluate").note  # type: ignore[union-attr]


# What a change of one input redoes, among the steps whose inputs are known before anything has run.
REDONE: dict[str, set[str]] = {
    "client": {"check", "statistics", "init", "train", "sessions"},
    "test": {"check", "statistics", "init", "train", "sessions"},
    "rounds": {"check", "train", "sessions"},
    "method": {"check", "init", "train", "sessions"},
    "seed": {"check", "statistics", "init", "train", "sessions"},
    "gate": set(),
}


@pytest.mark.parametrize("change", REDONE)
def test_which_steps_a_change_redoes(change: str, tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path)
    before = digests(pipeline)
    match change:
        case "client":
            pipeline.new_data("anna")
        case "test":
            pipeline.new_data("test")
        case "rounds":
            pipeline.run["rounds"]["total"] = 3
        case "method":
            pipeline.run["method"] = {"name": "fedavg"}
        case "seed":
            pipeline.run["seed"] = 9
        case "gate":
            pipeline.tables["gate"] = {"at_least": {"accuracy": 0.1}}
    after = digests(pipeline)
    assert {name for name in before if before[name] != after[name]} == REDONE[change]
    assert digests(pipeline) == after


def digests(pipeline: SmallPipeline) -> dict[str, str]:
    file, run = pipeline.read()
    current = PipelineRun(pipeline.folder, 1, [], "process", 0.0)
    work = PipelineWork(
        file, pipeline.journal, current, Carriers(pipeline.carrier, search_in_process), inputs_of(file, run)
    )
    return {name: digest_of(STEPS[name].inputs(work)) for name in REDONE["client"]}


def test_a_data_digest_follows_the_content_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.bin").write_bytes(b"1")
    first = data_digest(f"folder:{tmp_path / 'a'}")
    assert data_digest(f"folder:{tmp_path / 'a'}?class-names=x,y") == first
    (tmp_path / "a" / "two.bin").write_bytes(b"")
    second = data_digest(f"folder:{tmp_path / 'a'}")
    (tmp_path / "a" / "one.bin").write_bytes(b"2")
    assert len({first, second, data_digest(f"folder:{tmp_path / 'a'}")}) == 3
    assert data_digest("digits") == ""


# ---- the gate ------------------------------------------------------------------------------------------------


def test_nothing_passes_the_gate_without_a_verdict_on_this_digest(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={})
    with pytest.raises(GateWaitsError):
        pipeline()
    assert pipeline.states()["gate"] == "waits for a person"
    assert not registry(pipeline).rows()
    with pytest.raises(RefusedError):
        pipeline.box.decide("ab" * 32, "approved", "mara")
    with pytest.raises(GateWaitsError):
        pipeline()
    digest = approve(pipeline)
    assert pipeline().number == 1
    version = registry(pipeline).resolve("toy@champion")
    assert version.digest == digest  # what the person saw is what is served
    (verdict,) = lineage_of(registry(pipeline), "toy@champion")["approvals"]
    assert (verdict["who"], verdict["digest"], verdict["valid"], verdict["number"]) == ("mara", digest, True, 1)
    assert len(pipeline.carrier.orders) == 1


def test_an_approved_run_that_was_changed_since_is_not_registered(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={})
    with pytest.raises(GateWaitsError):
        pipeline()
    approve(pipeline)
    summary = next(pipeline.journal.place.glob("federated/*/summary.json"))
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "best": 1.0}))
    with pytest.raises(GateWaitsError):  # it asks about the digest that there is now
        pipeline()
    assert not registry(pipeline).rows()
    with pytest.raises(ConfigError, match="was approved"):
        register(registry(pipeline), summary.parent, "toy", digest="ab" * 32)
    assert not registry(pipeline).rows()


def test_a_rejected_candidate_is_not_registered_and_the_run_is_over(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={})
    with pytest.raises(GateWaitsError):
        pipeline()
    approve(pipeline, "rejected")
    with pytest.raises(GateRejectedError, match="mara rejected"):
        pipeline()
    assert pipeline.states()["gate"] == "rejected"
    assert not registry(pipeline).rows()
    with pytest.raises(GateRejectedError):
        pipeline()
    assert pipeline.journal.latest().number == 2  # type: ignore[union-attr]


def trusted(folder: Path) -> str:
    """The folder of an authority."""
    made = Authority.create(folder / "pki", "test")
    made.issue_server(["localhost"], timedelta(days=1))
    return str(made.server_folder)


def test_signatures_that_nobody_checks_cannot_be_demanded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="require_signature needs trust"):
        SmallPipeline(tmp_path, gate={"require_signature": True}).read()


def test_a_gate_that_wants_a_signature_takes_none_without(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={"require_signature": True, "trust": trusted(tmp_path)})
    with pytest.raises(GateWaitsError):
        pipeline()
    with pytest.raises(RefusedError, match="signed"):
        approve(pipeline)
    with pytest.raises(GateWaitsError):
        pipeline()


def test_an_unsigned_verdict_is_worth_nothing_once_the_gate_wants_signatures(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={})
    with pytest.raises(GateWaitsError):
        pipeline()
    approve(pipeline)
    pipeline()
    pipeline.tables["gate"] |= {"require_signature": True, "trust": trusted(tmp_path)}
    with pytest.raises(GateWaitsError):
        pipeline()
    [asked] = pipeline.box.pending()
    assert asked.request.signed, "and people see that it waits"


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ({"at_least": {"accuracy": 1.1}}, "at least 1.1"),
        ({"at_most": {"loss": 0.0}}, "at most 0"),
        ({"at_least": {"beauty": 0.1}}, "not measured"),
    ],
)
def test_a_rule_rejects_before_anybody_is_asked(rules: dict[str, Any], problem: str, tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate=rules)
    with pytest.raises(GateRejectedError, match=problem):
        pipeline()
    assert pipeline.box.pending() == []


@pytest.mark.parametrize(("on_timeout", "error"), [("fail", GateWaitsError), ("reject", GateRejectedError)])
def test_nobody_answers_in_time(on_timeout: str, error: type[Exception], tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={"timeout_h": 1e-7, "on_timeout": on_timeout})
    with pytest.raises(error, match="nobody has answered"):
        pipeline(waits=True)
    assert pipeline.journal.latest().ended is (on_timeout == "reject")  # type: ignore[union-attr]


def test_a_gate_that_nobody_answers_rejects_even_if_no_process_waits(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={"timeout_h": 1.0, "on_timeout": "reject"})
    with pytest.raises(GateWaitsError):
        pipeline()
    run = pipeline.journal.latest()
    assert run is not None
    asked_at = run.step("gate").began_at
    with pytest.raises(GateWaitsError):
        pipeline()
    run = pipeline.journal.latest()
    assert run is not None
    assert run.step("gate").began_at == asked_at, "to run it again is no new question"
    assert reason(pipeline) == ""
    run.step("gate").began_at -= 3601
    run.save()
    assert reason(pipeline) == "schedule"
    with pytest.raises(GateRejectedError, match="nobody has answered the gate within 1 h"):
        pipeline()


def test_a_gate_that_waited_in_vain_may_wait_again(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={"timeout_h": 1e-7})
    with pytest.raises(GateWaitsError, match="nobody has answered"):
        pipeline(waits=True)
    pipeline.tables["gate"]["timeout_h"] = 1.0
    with pytest.raises(GateWaitsError, match="waits for a verdict"):
        pipeline()


def test_a_gate_before_deploy_holds_back_the_alias_only(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={"before": "deploy"})
    with pytest.raises(GateWaitsError):
        pipeline()
    assert registry(pipeline).aliases("toy") == {"challenger": 1}
    digest = approve(pipeline)
    pipeline()
    assert registry(pipeline).aliases("toy") == {"challenger": 1, "champion": 1}
    (verdict,) = lineage_of(registry(pipeline), "toy@champion")["approvals"]
    assert verdict["digest"] == digest == registry(pipeline).resolve("toy/1").digest


def test_somebody_who_moves_the_alias_back_is_not_overruled(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path)
    pipeline()
    pipeline.new_data("anna")
    pipeline()
    registry(pipeline).rollback("toy", "champion")
    pipeline()
    assert registry(pipeline).aliases("toy")["champion"] == 1


# ---- what an earlier time left is no longer true --------------------------------------------------------------


def through_the_gate(pipeline: SmallPipeline) -> str:
    """Run it, approve what it asks about, run it to its end; the digest that was approved."""
    with pytest.raises(GateWaitsError):
        pipeline()
    digest = approve(pipeline)
    pipeline()
    return digest


@pytest.mark.parametrize("before", ["register", "deploy"])
def test_what_was_approved_last_is_deployed_even_if_it_was_deployed_before(before: str, tmp_path: Path) -> None:
    """Data A, data B, then data A again: the earlier results for A are known, but the aliases have moved since."""
    pipeline = SmallPipeline(tmp_path, gate={"before": before})
    anna, first_data = tmp_path / "anna.npz", (tmp_path / "anna.npz").read_bytes()
    first = through_the_gate(pipeline)
    pipeline.new_data("anna")
    second = through_the_gate(pipeline)
    assert registry(pipeline).resolve("toy@champion").digest == second != first
    anna.write_bytes(first_data)
    assert through_the_gate(pipeline) == first
    assert registry(pipeline).aliases("toy") == {"challenger": 1, "champion": 1}
    assert pipeline.states()["train"] == "cached", "nothing was trained again"
    verdicts = lineage_of(registry(pipeline), "toy/1")["approvals"]
    assert [one["digest"] for one in verdicts] == [first, first], "each verdict that opened the gate is kept"
    pipeline()
    assert {state for state in pipeline.states().values() if state != "skipped"} == {"cached"}


@pytest.mark.parametrize("before", ["register", "deploy"])
def test_a_verdict_that_was_given_anew_reaches_the_lineage_and_moves_nothing(before: str, tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={"before": before})
    digest = through_the_gate(pipeline)
    pipeline.new_data("anna")
    newer = through_the_gate(pipeline)
    registry(pipeline).rollback("toy", "champion")
    pipeline.box.decide(newer, "approved", "nils", "looked again", change=True)
    pipeline()
    told = lineage_of(registry(pipeline), "toy/2")["approvals"]
    assert [(one["who"], one["valid"]) for one in told] == [("mara", True), ("nils", True)]
    assert registry(pipeline).resolve("toy@champion").digest == digest


def test_an_alias_that_is_gone_is_set_again(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path)
    pipeline()
    registry(pipeline).store.client.delete_registered_model_alias("toy", "champion")
    pipeline()
    assert registry(pipeline).aliases("toy")["champion"] == 1


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"register": {"alias": "champion"}}, "would move to the new version before the verdict"),
        ({"deploy": {"alias": "challenger"}}, "would move to the new version before the verdict"),
        ({"deploy": None}, r"holds back nothing without \[deploy\]"),
    ],
)
def test_no_alias_that_is_deployed_moves_before_the_verdict(
    tables: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    pipeline = SmallPipeline(tmp_path, gate={"before": "deploy"}, **tables)
    if tables.get("deploy", {}) is None:
        del pipeline.tables["deploy"]
    with pytest.raises(ConfigError, match=problem):
        pipeline.read()
    pipeline.tables["gate"]["before"] = "register"
    pipeline.read()


# ---- reasons to run ------------------------------------------------------------------------------------------


def reason(pipeline: SmallPipeline) -> str:
    cause = due(*pipeline.read())
    return cause.kind if cause else ""


def test_a_new_run_has_a_reason(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={}, triggers={"every_h": 1e-4})
    assert reason(pipeline) == "operator"
    with pytest.raises(GateWaitsError):
        pipeline()
    assert reason(pipeline) == ""  # it waits for a person; the schedule does not push it
    approve(pipeline)
    assert reason(pipeline) == "verdict"
    pipeline()
    run = pipeline.journal.latest()
    assert run is not None
    run.began_at -= 1
    run.save()
    assert reason(pipeline) == "schedule"
    pipeline.new_data("anna")
    cause = due(*pipeline.read())
    assert cause is not None
    assert (cause.kind, cause.text) == ("data", "changed since the last run: client anna")
    pipeline.tables["triggers"] = {"data": False}
    assert reason(pipeline) == ""


def test_one_failed_run_does_not_stop_the_schedule(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, triggers={"every_h": 1.0, "data": False})
    (tmp_path / "bert.npz").rename(tmp_path / "gone")
    with pytest.raises(DataError):
        pipeline()
    assert reason(pipeline) == "", "what failed is not tried again at once"
    run = pipeline.journal.latest()
    assert run is not None
    run.began_at -= 3600
    run.save()
    cause = due(*pipeline.read())
    assert cause is not None
    assert cause.kind == "schedule"
    with pytest.raises(DataError):
        pipeline(cause)
    assert len(pipeline.journal.runs()) == 2
    assert reason(pipeline) == "", "its time counts from the new run"


def test_the_watch_outlives_a_file_that_is_half_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = SmallPipeline(tmp_path, triggers={"poll_s": 0.25})
    path = pipeline.write()
    whole, seen = path.read_text(), list[float]()

    class EndedError(Exception):
        """The test has seen enough."""

    def sleep(seconds: float) -> None:
        seen.append(seconds)
        path.write_text('name = "toy' if len(seen) == 1 else whole)
        if len(seen) == 3:
            raise EndedError

    monkeypatch.setattr("fednc.cli.pipeline.time.sleep", sleep)
    monkeypatch.setattr("fednc.cli.pipeline._reason", lambda runner: None)
    done = CliRunner().invoke(app, ["pipeline", "watch", str(path)])
    assert isinstance(done.exception, EndedError), done.output
    assert seen == [0.25] * 3
    assert "is not TOML" in done.output


def looked(pipeline: SmallPipeline, alarms: list[ClientDrifts] | None = None) -> Cause | None:
    """One look: at the clients themselves, or one in which these alarms are heard."""

    def carry(order: RunOrder) -> None:
        if alarms is None:
            pipeline.carrier(order)
        for event in alarms or []:
            order.heard(event)

    return look(*pipeline.read(), Carriers(carry, search_in_process))


def test_a_look_is_at_the_served_model_whatever_the_file_says_by_now(tmp_path: Path) -> None:
    """A search may have found its settings, or somebody has edited the file."""
    pipeline = SmallPipeline(tmp_path)
    pipeline()
    pipeline.run["task"]["width"], pipeline.run["frame"] = 16, {"dim": 12}
    assert looked(pipeline) is None
    asked = pipeline.carrier.orders[-1].run
    assert (asked.task.width, asked.frame.dim, asked.train.epochs, asked.rounds.total) == (8, 8, 0, 1)  # type: ignore[attr-defined]


def drifts(node: str, *classes: str) -> ClientDrifts:
    return ClientDrifts(
        text=f"{node} {classes}", node=node, round=1, times=3.0, chance=1e-6, cosine=0.1, classes=classes
    )


@pytest.mark.parametrize("node", ["anna", "zoe", ""])
def test_each_drift_raises_one_run(node: str, tmp_path: Path) -> None:
    """anna's data can be read here, zoe comes by herself, and the last one is not listed."""
    pipeline = SmallPipeline(tmp_path)
    pipeline()
    cause = looked(pipeline, [drifts(node, "a")])
    assert cause is not None
    assert looked(pipeline, [drifts(node, "a")]) == cause, "nobody has acted on it yet"
    pipeline(cause)
    assert looked(pipeline, [drifts(node, "a")]) is None
    other = looked(pipeline, [drifts(node, "a"), drifts("", "b")])
    assert other is not None
    assert other.text == " ('b',)"
    looked(pipeline, [])
    again = looked(pipeline, [drifts(node, "a")])
    assert (again is None) == (node == "anna"), "a drift that was over is a new one, unless the data are the same"


def test_newer_data_replace_a_candidate_that_waits(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, gate={})
    with pytest.raises(GateWaitsError):
        pipeline()
    (first,) = pipeline.box.pending()
    pipeline.new_data("anna")
    with pytest.raises(GateWaitsError):
        pipeline(Cause("data", "anna"))
    (second,) = pipeline.box.pending()
    assert second.request.facts["why"] == "anna"
    with pytest.raises(RefusedError):
        pipeline.box.decide(first.request.digest, "approved", "mara")
    old, new = pipeline.journal.runs()
    assert (str(old.step("gate").state), old.ended, new.asks) == ("replaced by a newer run", True, True)


# ---- search -----------------------------------------------------------------------------------------------------


def test_the_run_has_the_settings_of_the_best_trial(tmp_path: Path) -> None:
    search = {
        "space": {"train.lr": {"choices": [1e-6, 0.1]}},
        "trials": 2,
        "sampler": "Grid",
        "set": {"rounds.total": 1},
    }
    pipeline = SmallPipeline(tmp_path, search=search)
    pipeline()
    assert pipeline.states()["search"] == "done"
    (order,) = pipeline.carrier.orders
    found = json.loads(next(pipeline.journal.place.glob("results/search-*.json")).read_text())["result"]
    values = {trial["train.lr"]: None for trial in [found["settings"]]}
    assert order.run.train.lr in values
    assert order.run.rounds.total == 2  # `set` is for trials only
    pipeline()
    assert pipeline.states()["search"] == pipeline.states()["train"] == "cached"


def test_the_clients_of_this_machine_stay_for_all_trials_of_a_search_over_the_link(tmp_path: Path) -> None:
    search = {
        "space": {"train.lr": {"choices": [1e-6, 0.1]}},
        "trials": 2,
        "sampler": "Grid",
        "set": {"rounds.total": 1},
    }
    pipeline = SmallPipeline(tmp_path, search=search, on="link")
    file, run = pipeline.read()
    found: list[SearchView] = []

    def stop_after(order: SearchOrder) -> SearchView:
        found.append(search_over_link(order))
        raise RunFailedError("the trials are enough for this test")

    with pytest.raises(RunFailedError):
        Runner(file, run, Carriers(pipeline.carrier, stop_after))(ASKED)
    assert [trial.state for trial in found[0].trials] == ["complete", "complete"]


@pytest.mark.parametrize(
    ("listen", "names", "host"),
    [
        ("example.org:8440", ["example.org"], "example.org"),
        ("0.0.0.0:8440", [], "127.0.0.1"),
        ("[::]:8440", [], "[::1]"),
        ("0.0.0.0:8440", ["example.org", "127.0.0.1", "localhost"], "127.0.0.1"),
        ("0.0.0.0:8440", ["example.org", "localhost"], "localhost"),
        ("[::]:8440", ["*.example.org", "fl.example.org", "10.0.0.1"], "fl.example.org"),
        ("0.0.0.0:8440", ["2001:db8::1"], "[2001:db8::1]"),
    ],
)
def test_clients_of_this_machine_call_a_name_that_the_certificate_has(
    listen: str, names: list[str], host: str, tmp_path: Path
) -> None:
    pipeline = SmallPipeline(tmp_path)
    pipeline.run["server"] = {"listen": listen}
    if names:
        made = Authority.create(tmp_path / "pki", "test")
        made.issue_server(names, timedelta(days=1))
        pipeline.run["server"]["certs"] = str(made.server_folder)
    assert host_of(pipeline.read()[1]) == host


# ---- sessions ------------------------------------------------------------------------------------------------


def with_sessions(folder: Path, sessions: list[dict[str, Any]]) -> SmallPipeline:
    pipeline = SmallPipeline(folder)
    values = fewshot(parts=2).model_dump(mode="json", exclude_unset=True)
    pipeline.run = {**values, "sessions": sessions}
    pipeline.clients = {"anna": "digits", "bert": "digits"}
    return pipeline


def weights(pipeline: SmallPipeline) -> dict[str, Any]:
    return load_file(pipeline.carrier.orders[-1].folder / "model" / "model.safetensors")


def test_other_sessions_begin_after_the_rounds_of_the_earlier_run(tmp_path: Path) -> None:
    first, second = SESSIONS
    changed = [first, {**second, "shots": 3}]
    pipeline, fresh = with_sessions(tmp_path / "one", SESSIONS), with_sessions(tmp_path / "two", changed)
    pipeline()
    pipeline.run["sessions"] = changed
    pipeline()
    fresh()
    states = pipeline.states()
    assert [states[name] for name in ("statistics", "train", "sessions")] == ["cached", "cached", "done"]
    events = (pipeline.carrier.orders[-1].folder / "events.jsonl").read_text().splitlines()
    rounds = [event["round"] for line in events if (event := json.loads(line))["kind"] == "round"]
    assert min(rounds) == 3  # the rounds before the first session were not done again
    ours, theirs = weights(pipeline), weights(fresh)
    assert [key for key in theirs if not ours[key].equal(theirs[key])] == []


# ---- what is wrong is said ------------------------------------------------------------------------------------


def test_a_failed_step_says_why_and_is_done_when_it_can_be(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path)
    data = tmp_path / "bert.npz"
    data.rename(tmp_path / "gone")
    with pytest.raises(DataError):
        pipeline()
    assert pipeline.states()["check"] == "failed"
    (tmp_path / "gone").rename(data)
    pipeline()
    assert set(pipeline.states().values()) == {"done", "skipped"}


def test_a_pipeline_without_clients_is_refused(tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path)
    pipeline.clients = {}
    with pytest.raises(ConfigError, match="under \\[clients\\]"):
        pipeline()
    pipeline.tables |= {"on": "link", "link": {"start_clients": False}}
    pipeline.read()


def test_all_phases_are_steps() -> None:
    assert set(phases.PHASES) < set(STEPS)
    assert STEPS["gate"].does is gate.ask
    assert STEPS["deploy"].does is deployment.deployed


def test_a_plug_in_in_quarantine_is_refused_and_one_that_passed_is_in_the_lineage(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site.install_task("ours", distribution="our-task")
    plugin = plugins.find(plugins.TASKS, "ours")
    pipeline = SmallPipeline(tmp_path, gate={}, checked_plugins=True)
    pipeline.run["task"]["name"] = "ours"
    with pytest.raises(ConfigError, match="has not been tested"):
        pipeline()
    quarantine.keep(plugin, {"the same seed gives the same model": "it does not"})
    for checked in (True, False):
        pipeline.tables["checked_plugins"] = checked
        with pytest.raises(ConfigError, match=r"in quarantine.*the same seed"):
            pipeline()
    assert (pipeline.states()["check"], pipeline.carrier.orders) == ("failed", [])
    quarantine.keep(plugin, {"the same seed gives the same model": ""})
    with pytest.raises(GateWaitsError):
        pipeline()
    (waiting,) = pipeline.box.pending()
    (told,) = waiting.request.facts["plug-ins"]
    assert told.startswith("ours of our-task 0.3.0")
    assert told.endswith("passed")
    approve(pipeline)
    pipeline()
    used = {one["name"]: one for one in lineage_of(registry(pipeline), "toy@champion")["distributions"]}
    assert used["our-task"]["version"] == "0.3.0"
    assert used["our-task"]["code_sha256"]
    assert "licence" in used["our-task"]


STEP = """
from fednc.common.methods.api import ServerStep

class Ours(ServerStep):
    '''A step at the server.'''

    name = "ours"
"""
NAMING_OURS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the method": ({"method": {"name": "ours"}}, {}),
    "its step": ({"method": {"name": "fednc", "server_step": "ours"}}, {}),
    "a choice of the method": ({}, {"space": {"method.name": {"choices": ["fednc", "ours"]}}}),
    "a choice of the step": ({}, {"space": {"method.server_step": {"choices": ["", "ours"]}}}),
    "a choice under a condition": (
        {},
        {
            "space": {
                "method.name": {"choices": ["fedavg", "fednc"]},
                "method.server_step": {"choices": ["", "ours"], "when": {"method.name": "fednc"}},
            }
        },
    ),
    "trials only": (
        {},
        {"space": {"train.lr": {"choices": [0.1, 0.2]}}, "set": {"method": {"server_step": "ours"}}},
    ),
}


@pytest.mark.parametrize("where", NAMING_OURS)
def test_no_key_that_names_a_plug_in_escapes_the_quarantine(
    where: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site.install("our-step", {plugins.METHODS: {"ours": "{}:Ours"}}, STEP)
    run, search = NAMING_OURS[where]
    pipeline = SmallPipeline(tmp_path, checked_plugins=True, **({"search": search} if search else {}))
    pipeline.run |= run
    with pytest.raises(ConfigError, match="has not been tested"):
        pipeline()
    quarantine.keep(plugins.find(plugins.METHODS, "ours"), {"a promise": "it does not hold"})
    for checked in (True, False):
        pipeline.tables["checked_plugins"] = checked
        with pytest.raises(ConfigError, match="in quarantine"):
            pipeline()
    assert (pipeline.states()["check"], pipeline.carrier.orders) == ("failed", [])


def test_a_step_at_the_server_is_in_the_request_and_in_the_lineage(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site.install("our-step", {plugins.METHODS: {"ours": "{}:Ours"}}, STEP)
    search = {"space": {"method.server_step": {"choices": ["ours"]}}, "trials": 1, "set": {"rounds.total": 1}}
    pipeline = SmallPipeline(tmp_path, gate={}, search=search)
    with pytest.raises(GateWaitsError):
        pipeline()
    (waiting,) = pipeline.box.pending()
    (told,) = waiting.request.facts["plug-ins"]
    assert told.startswith("ours of our-step 0.3.0")
    approve(pipeline)
    pipeline()
    used = {
        one["name"]: one["provides"] for one in lineage_of(registry(pipeline), "toy@champion")["distributions"]
    }
    assert used["our-step"] == ["method ours"]


# ---- found when the file is read -----------------------------------------------------------------------------

SPACE = {"train.lr": {"low": 0.01, "high": 0.1}}


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"search": {"space": SPACE, "objectives": ["acc"]}}, "'acc' is no objective"),
        ({"search": {"space": SPACE, "objectives": []}}, "objectives"),
        ({"search": {"space": SPACE, "sampler": "Tea"}}, "sampler 'Tea'"),
        ({"search": {"space": SPACE, "sampler": {"seeds": 3}}}, "sampler"),
        ({"search": {"space": SPACE, "pruner": {"name": "Median", "cups": 3}}}, "no option 'cups'"),
        ({"search": {"space": {"train.lr": {"low": 0.1, "high": 0.01}}}}, "`low` must be the smaller one"),
        ({"search": {"space": {"train.speed": {"choices": [1, 2]}}}}, "train.speed"),
        ({"search": {"space": SPACE, "set": {"rounds": {"totals": 1}}}}, "rounds.totals"),
        ({"gate": {"trust": "nowhere"}}, "nowhere does not have both"),
    ],
)
def test_what_a_later_step_would_refuse_is_refused_when_the_file_is_read(
    tables: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        SmallPipeline(tmp_path, **tables).read()


@pytest.mark.parametrize("settings", [{"rounds.total": 1}, {"rounds": {"total": 1}}])
def test_settings_for_trials_change_nothing_but_their_keys(settings: dict[str, Any], tmp_path: Path) -> None:
    pipeline = SmallPipeline(tmp_path, search={"space": SPACE, "set": settings})
    pipeline.run["rounds"] |= {"min_clients": 2, "keep": "best"}
    file, run = pipeline.read()
    tried = file.search_plan("toy", tmp_path).run
    assert tried == run.model_copy(update={"rounds": run.rounds.model_copy(update={"total": 1})})
    assert file.tables["rounds"]["total"] == run.rounds.total == 2


def test_the_page_lists_every_key() -> None:
    page = (Path(__file__).parents[3] / "docs" / "pipelines.md").read_text()
    assert [key for key in keys_of(PipelineFile) if f"| `{key}` |" not in page] == []


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        kinds = get_args(field.annotation) or (field.annotation,)
        tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        yield from keys_of(tables[0], f"{key}.") if tables else [key]
