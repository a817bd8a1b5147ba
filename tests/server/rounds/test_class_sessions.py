"""Runs whose classes come later: the registry, what stays on clients, what travels, the operator's commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fednc.bench.local_grid import LocalGrid
from fednc.client.app.host import ClientConfig
from fednc.client.app.withheld_sums import sendable
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError, DataError, QuorumError
from fednc.common.learning.class_memory import ClassSums
from fednc.common.tasks import discovery
from fednc.common.tasks.class_registry import ClassRegistry
from fednc.server.rounds.context import Surroundings
from fednc.server.storage.events import ClassesWithoutMemory, WaitingForClients
from support.fewshot_run import BASE, SESSIONS, carry_out, clients, config, prepare, write_npz
from support.heard_events import of_kind

NAMES = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=4, unique=True)

# ---- the registry --------------------------------------------------------------------------------------------


@given(NAMES, NAMES)
def test_a_class_keeps_its_vertex_when_others_come(first: list[str], second: list[str]) -> None:
    registry = ClassRegistry((tuple(first),), vertices=8)
    new = [name for name in second if name not in first]
    if not new:
        return
    grown = registry.extended(new)
    assert [grown.names.index(name) for name in (*first, *new)] == list(range(len(first) + len(new)))
    assert (registry.version, grown.version, grown.first(0)) == (0, 1, registry)
    grown.check_continues(registry)
    assert ClassRegistry.from_json(json.loads(json.dumps(grown.to_json()))) == grown
    with pytest.raises(ConfigError, match="not removed"):
        registry.check_continues(grown)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [(["1"], "exist already"), (["6", "7", "8"], "frame.vertices = 9"), ([], "at least one")],
)
def test_clashes_full_frames_and_empty_sessions_are_refused(names: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ClassRegistry((tuple(BASE),), vertices=8).extended(names)


def test_a_clash_and_a_full_frame_in_the_run_file() -> None:
    with pytest.raises(ConfigError, match="class names '3' exist already"):
        discovery.get(config(sessions=[{"classes": ["3"]}]))
    with pytest.raises(ConfigError, match=r"frame\.vertices = 10 or more"):
        discovery.get(config(frame={"vertices": 9}))
    with pytest.raises(ConfigError, match="name the new classes"):
        config(sessions=[{"rounds": 1}])
    with pytest.raises(ConfigError, match="learns all of its classes at once"):
        discovery.get(parse_run({"task": {"classes": ["a", "b"]}, "sessions": [{"classes": ["c"]}]}))


def test_clients_with_classes_in_another_order_are_mapped_by_name(tmp_path: Path) -> None:
    task = discovery.get(config(split=None))
    order = ["9", "3", "0", "6"]
    data = task.load_train(f"npz:{write_npz(tmp_path / 'a.npz', [0, 3, 6, 9], order, each=7)}", None, None)
    assert data.count_K.tolist() == [7, 0, 0, 7, 0, 0, 7, 0, 0, 7, 0, 0]
    path = write_npz(tmp_path / "b.npz", [0, 1], ["0", "1"])
    arrays = dict(np.load(path)) | {"classes": ["0", "cat"]}
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="'cat' are not in this run"):
        task.load_train(f"npz:{path}", None, None)


# ---- what stays on a client ----------------------------------------------------------------------------------


def test_sums_over_few_examples_stay_and_the_client_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    count_K, told = torch.tensor([5, 2, 0]), set[str]()
    for _ in range(2):
        assert sendable(count_K, 5, ["cat", "dog", "eel"], told).tolist() == [True, False, True]
    assert caplog.text.count("class 'dog'") == 1
    assert "fewer than min_sum_examples = 5" in caplog.text


def test_the_stricter_minimum_of_run_and_client_counts() -> None:
    run = config(parts=1, rounds={"min_clients": 1})
    for floor, remembered in ((2, True), (6, False)):  # the run's minimum is 5, and so is the number of shots
        [client] = clients(run)
        prepared, events = prepare(run)
        with LocalGrid(run, [replace(client, min_sum_examples=floor)]) as grid:
            seen_K = prepared.execute(grid, Surroundings(name_of=grid.name_of)).state.memory.seen_K
        assert seen_K.tolist() == [True] * 6 + [remembered] * 4 + [False] * 2
        assert remembered == (not of_kind(ClassesWithoutMemory, events))


def test_a_client_says_once_per_stage_what_it_withholds(caplog: pytest.LogCaptureFixture) -> None:
    one_shot = [{**session, "shots": 1} for session in SESSIONS]
    carry_out(config(parts=1, sessions=one_shot, rounds={"min_clients": 1, "evaluate_every": 1}))
    kept = [record.args[0] for record in caplog.records if "is not sent" in record.msg and record.args]
    assert kept == ["6", "7", "8", "9"]


def test_one_shot_sessions_are_trained_but_not_remembered_unless_the_run_allows_it() -> None:
    one_shot = [{**session, "shots": 1} for session in SESSIONS]
    guarded, events = carry_out(config(sessions=one_shot))
    assert guarded.state.memory.seen_K.tolist() == [True] * 6 + [False] * 6
    said = [list(event.classes) for event in of_kind(ClassesWithoutMemory, events)]
    assert said == [["6", "7"], ["8", "9"]]
    open_, events = carry_out(config(sessions=one_shot, task={"min_sum_examples": 1}))
    assert open_.state.memory.seen_K.tolist() == [True] * 10 + [False] * 2
    assert not of_kind(ClassesWithoutMemory, events)


def test_a_client_cannot_change_the_memory_of_other_classes() -> None:
    from flwr.app import MetricRecord, RecordDict

    from fednc.common.errors import ProtocolError
    from fednc.common.wire.messages import EXAMPLES, METRICS, SUMS, sums_record
    from fednc.server.rounds.reply_contents import sums_in

    task = discovery.get(config())
    sums = ClassSums.zeros(12, task.memory_dim)
    sums.count_K[3] = 5
    content = RecordDict({SUMS: sums_record(sums), METRICS: MetricRecord({EXAMPLES: 10})})
    announced_K = [5] * 12
    assert sums_in(content, task, task.stages[0], announced_K, sums).count_K[3] == 5
    with pytest.raises(ProtocolError, match="not in stage 1"):
        sums_in(content, task, task.stages[1], announced_K, sums)


def test_a_session_waits_for_clients_with_its_classes_and_says_so(tmp_path: Path) -> None:
    run = config(parts=1, split=None, rounds={"wait_s": 0.5, "min_clients": 1}, evaluate={"test": ""})
    data = write_npz(tmp_path / "base.npz", range(6), BASE)
    prepared, events = prepare(run)
    with (
        LocalGrid(run, [ClientConfig(name="a", data=f"npz:{data}", device="cpu", val_share=0)]) as grid,
        pytest.raises(QuorumError, match="0 of 1 clients hold examples of the classes of session 1"),
    ):
        prepared.execute(grid)
    assert of_kind(WaitingForClients, events)


# ---- the server trains alone ---------------------------------------------------------------------------------


def test_the_server_can_fit_alone_and_clients_send_sums_only() -> None:
    longer = [{**session, "epochs": 40} for session in SESSIONS]
    result, _ = carry_out(config(task={"fit": "server"}, sessions=longer))
    ends = [record for record in result.history.rounds if record.session is not None]
    assert [record.replies for record in ends] == [3, 0, 0]
    assert result.state.memory.seen_K[:10].all()
    assert ends[-1].test["novel"] > 0.2


def test_settling_aligns_the_memory_with_its_vertices_and_leaves_the_backbone() -> None:
    runs = [carry_out(config(task={"settle": steps}))[0] for steps in (0, 20)]
    before, after = (result.history.rounds[1].memory_cosines for result in runs)
    assert min(after.values()) > min(before.values())
    plain, settled = (result.state.model for result in runs)
    moved = {key for key in plain if not torch.equal(plain[key], settled[key])}
    assert moved == {key for key in plain if key.startswith("projection.")}


# ---- reports -------------------------------------------------------------------------------------------------


def test_each_session_is_reported_and_pooled_statistics_equal_one_evaluation(tmp_path: Path) -> None:
    result, _ = carry_out(config(), val_share=0.3)
    summary = result.history.summary()
    assert len(summary["session_acc"]) == 3
    assert summary["mean"] == pytest.approx(sum(summary["session_acc"]) / 3)
    assert summary["drop"] == pytest.approx(summary["session_acc"][0] - summary["session_acc"][-1])
    last = summary["sessions"][-1]
    assert last["harmonic"] == pytest.approx(2 * last["base"] * last["novel"] / (last["base"] + last["novel"]))
    assert set(last["memory_cosines"]) == {*BASE, "6", "7", "8", "9"}
    assert all(-1 <= cosine <= 1.0001 for cosine in last["memory_cosines"].values())
    record = result.history.rounds[-1]
    counts = result.task.load_test("digits").count_K
    base, novel = counts[:6].sum().item(), counts[6:10].sum().item()
    whole = (record.test["base"] * base + record.test["novel"] * novel) / (base + novel)
    assert whole == pytest.approx(record.test["accuracy"])
    assert {"base", "novel", "newest", "harmonic"} <= record.pooled.keys()
