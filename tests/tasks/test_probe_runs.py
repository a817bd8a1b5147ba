"""Runs with a probe: every task's width can be tried, the pick is kept, and owners and servers are protected."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from typer.testing import CliRunner

from fednc.bench.local_grid import LocalGrid
from fednc.bench.run_pictures import PROBE, draw_probe
from fednc.cli.main import app as command
from fednc.client.app.flower_app import app as honest_app
from fednc.client.app.host import ClientConfig
from fednc.client.policy import objections
from fednc.client.policy.owner import to_changed_run
from fednc.common.config.probe import ProbePick
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError
from fednc.common.tasks import probe
from fednc.common.wire import arrays, messages
from fednc.common.wire.messages import STATS, Instruction
from fednc.protos import federation_pb2 as pb
from fednc.server.link.reply_schema import ReplySchema
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.result_files import summary_of
from fednc.server.rounds.run import FederatedRun, RunResult
from fednc.server.storage import probe_record
from fednc.server.storage.checkpoint import Checkpoints
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import DataSumsAdded, DiskProblem, Event, ProbeDecided, ProbeMissing, ProbeWaiting
from support.clients_with_policy import open_but
from support.hostile.apps import app_with
from support.prototype_tasks import SCALED, installed, write_scaled
from support.runs_on_grids import App

WIDTHS = {"name": "width", "axis": "width", "values": [8, 16]}
IMAGES: dict[str, Any] = {
    "task": {"classes": ["0", "1"], "size": 8, "channels": 1},
    "frame": {"dim": 8},
    "method": {"name": "fednc"},
    "train": {"batch": 16},
    "rounds": {"total": 2, "min_clients": 2},
    "probe": {"families": [WIDTHS], "steps": 2, "seeds": 1},
}


@pytest.fixture
def clients(tmp_path: Path) -> list[ClientConfig]:
    rng = np.random.default_rng(0)
    found = []
    for name in ("anna", "bert", "carl"):
        pixel, label = rng.integers(0, 255, (24, 8, 8)).astype(np.uint8), np.arange(24) % 2
        np.savez(tmp_path / f"{name}.npz", x_train=pixel, y_train=label, classes=np.array(["0", "1"]))
        found.append(ClientConfig(name=name, data=f"npz:{tmp_path / name}.npz", device="cpu", val_share=0.0))
    return found


class Made:
    """One run in this process, with its events."""

    def __init__(self, run: RunConfig, clients: list[ClientConfig], app: App = honest_app, **around: Any) -> None:
        self.events: list[Event] = []
        self._log = EventLog()
        self._log.listen(self.events.append)
        self._run, self._clients, self._app, self._around = run, clients, app, around

    def execute(self, prepared: FederatedRun | None = None) -> RunResult:
        prepared = prepared or FederatedRun(self._run, self._log)
        with LocalGrid(self._run, self._clients, self._app) as grid:
            return prepared.execute(grid, Surroundings(name_of=grid.name_of, **self._around))

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def test_an_image_tasks_width_is_tried_and_the_run_goes_on_with_the_pick(clients: list[ClientConfig]) -> None:
    kept: list[Any] = []
    made = Made(parse_run(IMAGES), clients, keep_probe=kept.append)
    result = made.execute()
    (decided,) = made.of(ProbeDecided)
    (curve,) = decided.verdict["families"]
    assert (decided.answered, decided.family, len(curve["held_out"])) == (3, "width", 2)
    assert decided.value == curve["values"][min(range(2), key=curve["held_out"].__getitem__)]
    assert decided.config == parse_run(IMAGES).digest == result.run.digest
    assert kept == [decided.verdict]
    first = next(value for key, value in result.state.model.items() if key.startswith("backbone."))
    assert first.shape[0] == decided.value
    assert result.task.options.width == decided.value  # type: ignore[attr-defined]
    assert summary_of("r", result)["probe"] == decided.verdict
    assert result.history.rounds[-1].replies == 3


def test_the_same_run_picks_the_same_whoever_answers_first(clients: list[ClientConfig]) -> None:
    one, other = Made(parse_run(IMAGES), clients), Made(parse_run(IMAGES), clients[::-1])
    states = [made.execute().state.model for made in (one, other)]
    assert one.of(ProbeDecided)[0].verdict == other.of(ProbeDecided)[0].verdict
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_pick_in_the_run_file_is_used_without_asking(clients: list[ClientConfig]) -> None:
    section = {**IMAGES["probe"], "picked": {"family": "width", "value": 16}, "then": "ask"}
    made = Made(parse_run({**IMAGES, "probe": section}), clients, has_operator=True)
    result = made.execute()
    assert made.of(ProbeDecided) == made.of(ProbeWaiting) == []
    assert result.task.options.width == 16  # type: ignore[attr-defined]


def test_a_run_that_asks_waits_for_an_operator(clients: list[ClientConfig]) -> None:
    control = RunControl()
    run = parse_run({**IMAGES, "probe": {**IMAGES["probe"], "then": "ask"}})
    made = Made(run, clients, has_operator=True, control=control)
    done: list[RunResult] = []
    working = threading.Thread(target=lambda: done.append(made.execute()))
    working.start()
    give_up = time.monotonic() + 60
    while not made.of(ProbeWaiting):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert control.paused
    assert not done
    control.resume()
    working.join(60)
    assert done[0].state.completed == 2


def test_check_lists_the_candidates_and_refuses_one_that_cannot_be_built(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "examples" / "parity.toml").read_text()
    (tmp_path / "run.toml").write_text(text)
    told = CliRunner().invoke(command, ["check", str(tmp_path / "run.toml")])
    assert told.exit_code == 0
    assert "quantum 20" in told.output
    (tmp_path / "run.toml").write_text(text.replace("10, 20]", "10, 900]"))
    told = CliRunner().invoke(command, ["check", str(tmp_path / "run.toml")])
    assert told.exit_code == 2
    assert "quantum 900" in told.output


# ---- sums of the data -------------------------------------------------------------------------------------------


@pytest.fixture
def prototypes() -> Iterator[None]:
    with installed():
        yield


def test_a_task_with_sums_of_the_data_is_asked_for_them_once(prototypes: None, tmp_path: Path) -> None:
    """Candidates are tried with them, and the pick gets the same ones."""
    family = {"name": "lines", "axis": "features", "values": [3]}
    run = parse_run({**SCALED, "probe": {"families": [family], "steps": 2, "seeds": 1}})
    data = [write_scaled(tmp_path / f"{i}.npz", i, 60) for i in range(2)]
    made = Made(run, [ClientConfig(name=str(i), data=spec, device="cpu") for i, spec in enumerate(data)])
    made.execute()
    assert len(made.of(ProbeDecided)) == len(made.of(DataSumsAdded)) == 1


# ---- restarts ---------------------------------------------------------------------------------------------------


def test_a_full_disk_does_not_end_a_run_whose_pick_the_checkpoints_hold(clients: list[ClientConfig]) -> None:
    def full(_verdict: Any) -> None:
        raise OSError(28, "No space left on device")

    made = Made(parse_run(IMAGES), clients, keep_probe=full)
    assert made.execute().state.completed == 2
    assert "No space left" in made.of(DiskProblem)[0].text
    assert len(made.of(ProbeDecided)) == 1


def test_a_restart_keeps_the_pick_and_asks_nobody(clients: list[ClientConfig], tmp_path: Path) -> None:
    run, folder = parse_run(IMAGES), tmp_path / "run"
    folder.mkdir()
    made = Made(run, clients, keep_probe=lambda verdict: probe_record.write(folder, run, verdict))
    whole = made.execute()

    before = probe_record.decision(folder, run, None, has_begun=False)  # killed before its first checkpoint
    assert before.pick is not None
    assert before.pick.model_dump() == made.of(ProbeDecided)[0].verdict["picked"]
    again = Made(run, clients)
    result = again.execute(FederatedRun(run, EventLog(), decided=before))
    assert again.of(ProbeDecided) == []
    assert all(torch.equal(value, result.state.model[key]) for key, value in whole.state.model.items())

    checkpoints = Checkpoints(folder, keep=1)
    half = parse_run({**IMAGES, "rounds": {**IMAGES["rounds"], "total": 1}})
    Made(half, clients, checkpoints=checkpoints).execute(FederatedRun(half, EventLog(), decided=before))
    kept = checkpoints.latest(run.digest, run.decisive())
    assert kept is not None
    assert kept.picked == before.pick
    (folder / probe_record.FILE).unlink()  # the checkpoint knows it too
    found = probe_record.decision(folder, run, kept.picked, has_begun=True)
    resumed = FederatedRun(run, EventLog(), resumes=True, decided=found)
    resumed.restore(kept)
    result = Made(run, clients).execute(resumed)
    assert all(torch.equal(value, result.state.model[key]) for key, value in whole.state.model.items())


def test_a_record_belongs_to_one_run_file_and_a_begun_run_to_one_pick(tmp_path: Path) -> None:
    run = parse_run(IMAGES)
    verdict = {"picked": {"family": "width", "value": 8}}
    probe_record.write(tmp_path, run, verdict)
    assert probe_record.decision(tmp_path, run, None, has_begun=False).pick == ProbePick(family="width", value=8)
    other = parse_run({**IMAGES, "seed": 5})
    assert probe_record.decision(tmp_path, other, None, has_begun=False).pick is None
    given = probe.with_pick(run, ProbePick(family="width", value=16))
    assert probe_record.decision(tmp_path, given, None, has_begun=False).pick == ProbePick(
        family="width", value=16
    )
    with pytest.raises(ConfigError, match="has begun with width 8"):
        probe_record.decision(tmp_path, given, ProbePick(family="width", value=8), has_begun=True)
    (tmp_path / probe_record.FILE).write_text("{")
    assert probe_record.decision(tmp_path, run, None, has_begun=False).pick is None


# ---- owners and liars -------------------------------------------------------------------------------------------


def test_owners_refuse_the_probe_unless_they_allow_it(clients: list[ClientConfig]) -> None:
    run = parse_run(IMAGES)
    order = Instruction.under(run, 1)
    codes = {found.code for found in objections.to_instruction(open_but(), run, order, messages.PROBE)}
    assert codes == {"probe"}
    allowing = open_but(allow={"probe": True})
    assert list(objections.to_instruction(allowing, run, order, messages.PROBE)) == []
    assert "probe" in {found.code for found in objections.to_coming(open_but(), run)}


def test_an_owner_accepts_every_pick_of_the_run_file_and_nothing_else() -> None:
    run = parse_run(IMAGES)
    chosen = probe.with_pick(run, ProbePick(family="width", value=16))
    for admitted, given in ((run, chosen), (chosen, run)):
        assert to_changed_run(admitted, Instruction.under(given, 1)) == []
    other = parse_run({**IMAGES, "task": {**IMAGES["task"], "width": 64}})
    assert [found.code for found in to_changed_run(run, Instruction.under(other, 1))] == ["run-changed"]


@pytest.mark.parametrize(("lr", "codes"), [(0.0, set()), (1.0, set()), (1.1, {"rate"})])
def test_a_policys_ceiling_holds_for_the_rate_of_a_probe(lr: float, codes: set[str]) -> None:
    run = parse_run({**IMAGES, "probe": {**IMAGES["probe"], "lr": lr}})
    policy = open_but(allow={"probe": True}, ceiling={"lr": 1.0})
    assert {found.code for found in objections.to_run(policy, run, has_part=False)} == codes


def test_floors_of_a_policy_apply_to_the_examples_of_a_probe() -> None:
    run = parse_run(IMAGES)
    policy = open_but(allow={"probe": True}, floor={"held_out": 7})
    counts = {probe.TRAINED: torch.tensor(18), probe.HELD: torch.tensor(6)}
    content = RecordDict({STATS: arrays.to_record({**probe.no_losses(run), **counts})})
    held = pb.Declaration(examples=24)
    assert [one.code for one in objections.to_reply(policy, messages.PROBE, content, held, having=())] == [
        "examples"
    ]
    lower = open_but(allow={"probe": True}, floor={"held_out": 6})
    assert list(objections.to_reply(lower, messages.PROBE, content, held, having=())) == []


def test_a_lie_is_refused_and_the_others_decide(clients: list[ClientConfig]) -> None:
    def lie(_: Any, reply: Any) -> None:
        if STATS in reply.content:
            sums = arrays.from_record(reply.content[STATS])
            if probe.HELD in sums:
                sums[probe.HELD] = torch.tensor(10**6)
                reply.content[STATS] = arrays.to_record(sums)

    rejected: list[str] = []
    made = Made(
        parse_run(IMAGES), clients, app_with({"bert": lie}), reject=lambda _node, why: rejected.append(why)
    )
    made.execute()
    (decided,) = made.of(ProbeDecided)
    assert decided.answered == 2
    assert len(rejected) == 1
    assert "were announced" in rejected[0]


def test_without_any_answer_the_run_goes_on_as_written(clients: list[ClientConfig]) -> None:
    for client in clients:
        pixel, label = np.zeros((2, 8, 8), np.uint8), np.arange(2)
        np.savez(client.data.removeprefix("npz:"), x_train=pixel, y_train=label, classes=np.array(["0", "1"]))
    made = Made(parse_run(IMAGES), clients)
    result = made.execute()
    assert made.of(ProbeDecided) == []
    assert len(made.of(ProbeMissing)) == 1
    assert result.task.options.width == 32  # type: ignore[attr-defined]


def test_the_form_of_replies_is_agreed_before_they_come() -> None:
    prepared = FederatedRun(parse_run(IMAGES), EventLog())
    schema = ReplySchema.of(prepared.task, prepared.state.model, is_first=True)
    (form,) = schema.forms[messages.PROBE].optional.values()
    assert set(form) == set(probe.no_losses(prepared.run))
    without = parse_run({key: value for key, value in IMAGES.items() if key != "probe"})
    prepared = FederatedRun(without, EventLog())
    schema = ReplySchema.of(prepared.task, prepared.state.model, is_first=True)
    assert not schema.forms[messages.PROBE].optional


def test_the_curve_is_drawn(clients: list[ClientConfig], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = parse_run(IMAGES)
    Made(run, clients, keep_probe=lambda verdict: probe_record.write(tmp_path, run, verdict)).execute()
    assert draw_probe(tmp_path)
    assert (tmp_path / PROBE).read_bytes().startswith(b"\x89PNG")
