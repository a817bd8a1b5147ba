"""Runs whose classes come later: the registry, what stays on clients, what travels, and an operator's word."""

from __future__ import annotations

import asyncio
import json
import sys
import tomllib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fewshot_setting import BASE, SESSIONS, carry_out, config
from hypothesis import given
from hypothesis import strategies as st
from places import until
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from fednc.bench.compare import compare
from fednc.bench.plan import Comparison
from fednc.bench.rows import Bench
from fednc.bench.sessions import session_rows
from fednc.cli.main import app as cli
from fednc.client.app import app
from fednc.client.host import AppHost, ClientConfig
from fednc.client.link import Link, LinkConfig
from fednc.client.operator import OperatorLink
from fednc.client.withhold import withhold
from fednc.common import tasks
from fednc.common.config import RunConfig, parse_run
from fednc.common.errors import ConfigError, DataError, QuorumError, RefusedError
from fednc.common.export import load
from fednc.common.memory import ClassSums
from fednc.common.registry import ClassRegistry
from fednc.server.events import EventLog
from fednc.server.federation import Federation
from fednc.server.process import Finished, run_server
from fednc.server.results import write_files

NAMES = st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=4, unique=True)

# ---- the registry --------------------------------------------------------------------------------------------


@given(NAMES, NAMES)
def test_a_class_keeps_its_vertex_when_others_come(first: list[str], second: list[str]) -> None:
    registry = ClassRegistry((tuple(first),), vertices=8)
    new = [name for name in second if name not in first]
    if not new:
        return
    grown = registry.extended(new)
    assert [grown.vertex_of(name) for name in (*first, *new)] == list(range(len(first) + len(new)))
    assert (registry.version, grown.version, grown.first(0)) == (0, 1, registry)
    grown.check_continues(registry)
    assert ClassRegistry.from_json(json.loads(json.dumps(grown.to_json()))) == grown
    with pytest.raises(ConfigError, match="never removed"):
        registry.check_continues(grown)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [(["1"], "there already"), (["6", "7", "8"], "frame.vertices = 9"), ([], "at least one")],
)
def test_clash_full_frame_and_nothing_new_are_refused(names: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ClassRegistry((tuple(BASE),), vertices=8).extended(names)


def test_a_clash_and_a_full_frame_in_the_run_file() -> None:
    with pytest.raises(ConfigError, match="'3' are there already"):
        tasks.get(config(sessions=[{"classes": ["3"]}]))
    with pytest.raises(ConfigError, match=r"frame\.vertices = 10 or more"):
        tasks.get(config(frame={"vertices": 9}))
    with pytest.raises(ConfigError, match="name the new classes"):
        config(sessions=[{"rounds": 1}])
    with pytest.raises(ConfigError, match="learns all of its classes at once"):
        tasks.get(parse_run({"task": {"classes": ["a", "b"]}, "sessions": [{"classes": ["c"]}]}))


def write_npz(path: Path, labels: Sequence[int], order: Sequence[str], each: int = 40) -> Path:
    """Digits of these labels, under class names in this order."""
    digits = load_digits()
    index = np.concatenate([np.flatnonzero(digits.target == label)[:each] for label in labels])
    place = {name: i for i, name in enumerate(order)}
    y = np.array([place[str(label)] for label in digits.target[index]])
    np.savez(path, x_train=(digits.images[index] * 15.9).astype(np.uint8), y_train=y, classes=list(order))
    return path


def test_clients_whose_classes_stand_in_another_order_are_mapped_by_name(tmp_path: Path) -> None:
    task = tasks.get(config(split=None))
    order = ["9", "3", "0", "6"]
    data = task.load_train(f"npz:{write_npz(tmp_path / 'a.npz', [0, 3, 6, 9], order, each=7)}", None, None)
    assert data.count_K.tolist() == [7, 0, 0, 7, 0, 0, 7, 0, 0, 7, 0, 0]
    path = write_npz(tmp_path / "b.npz", [0, 1], ["0", "1"])
    arrays = dict(np.load(path)) | {"classes": ["0", "cat"]}
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="'cat' are not in this run"):
        task.load_train(f"npz:{path}", None, None)


# ---- what stays on a client ----------------------------------------------------------------------------------


def test_sums_over_few_examples_stay_and_the_client_is_told(caplog: pytest.LogCaptureFixture) -> None:
    sums = ClassSums.zeros(3, 2).add_batch(torch.eye(2)[[0] * 7], torch.tensor([0] * 5 + [1] * 2))
    sent, withheld = withhold(sums, 5, ["cat", "dog", "eel"])
    assert (sent.count_K.tolist(), withheld) == ([5, 0, 0], 1)
    assert not sent.sum_KD[1].any()
    assert torch.equal(sent.sum_KD[0], sums.sum_KD[0])
    assert "class 'dog'" in caplog.text
    assert "fewer than min_sum_examples = 5" in caplog.text


def test_one_shot_sessions_are_trained_but_not_remembered_unless_the_run_allows_it() -> None:
    one_shot = [{**session, "shots": 1} for session in SESSIONS]
    guarded, events = carry_out(config(sessions=one_shot))
    assert guarded.state.memory.seen_K.tolist() == [True] * 6 + [False] * 6
    said = [event["classes"] for event in events if event["kind"] == "no-memory"]
    assert said == [["6", "7"], ["8", "9"]]
    open_, events = carry_out(config(sessions=one_shot, task={"min_sum_examples": 1}))
    assert open_.state.memory.seen_K.tolist() == [True] * 10 + [False] * 2
    assert not [event for event in events if event["kind"] == "no-memory"]


def test_a_client_cannot_change_the_memory_of_other_classes() -> None:
    from flwr.app import MetricRecord, RecordDict

    from fednc.common.errors import ProtocolError
    from fednc.common.exchange import EXAMPLES, METRICS, SUMS, sums_record
    from fednc.server.checked import sums_in

    task = tasks.get(config())
    sums = ClassSums.zeros(12, task.memory_dim)
    sums.count_K[3] = 5
    content = RecordDict({SUMS: sums_record(sums), METRICS: MetricRecord({EXAMPLES: 10})})
    assert sums_in(content, task, task.stages[0]).count_K[3] == 5
    with pytest.raises(ProtocolError, match="not of stage 1"):
        sums_in(content, task, task.stages[1])


def test_without_anybody_who_holds_the_new_classes_a_session_waits_and_says_so(tmp_path: Path) -> None:
    run = config(parts=1, split=None, rounds={"wait_s": 0.5, "min_clients": 1}, evaluate={"test": ""})
    data = write_npz(tmp_path / "base.npz", range(6), BASE)
    from fewshot_setting import prepare

    from fednc.bench.local_grid import LocalGrid

    prepared, events = prepare(run)
    with (
        LocalGrid(run, [ClientConfig(name="a", data=f"npz:{data}", device="cpu", val_share=0)]) as grid,
        pytest.raises(QuorumError, match="0 of 1 clients hold examples of the classes of session 1"),
    ):
        prepared.execute(grid)
    assert [event["text"] for event in events if event["kind"] == "waiting"]


# ---- the server trains alone ---------------------------------------------------------------------------------


def test_the_server_can_fit_alone_and_clients_send_sums_only() -> None:
    longer = [{**session, "epochs": 40} for session in SESSIONS]
    result, _ = carry_out(config(task={"fit": "server"}, sessions=longer))
    ends = [record for record in result.history.rounds if record.session is not None]
    assert [record.replies for record in ends] == [3, 0, 0]
    assert result.state.memory.seen_K[:10].all()
    assert ends[-1].test["novel"] > 0.2


def test_settling_aligns_the_memory_with_its_vertices_and_leaves_the_backbone() -> None:
    runs = [carry_out(config(task={"settle": steps}, sessions=SESSIONS[:1]))[0] for steps in (0, 20)]
    before, after = (result.history.rounds[1].memory_cosines for result in runs)
    assert min(after.values()) > min(before.values())
    plain, settled = (result.state.model for result in runs)
    moved = {key for key in plain if not torch.equal(plain[key], settled[key])}
    assert moved == {key for key in plain if key.startswith("projection.")}


# ---- what is told --------------------------------------------------------------------------------------------


def test_each_session_is_told_and_pooled_statistics_say_what_one_evaluation_would(tmp_path: Path) -> None:
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


# ---- over the link, under an operator's hand -----------------------------------------------------------------


Scenario = Callable[[Federation, OperatorLink], Awaitable[None]]


async def with_run(run: RunConfig, folder: Path, data: dict[str, str], scenario: Scenario) -> Finished:
    """Serve `run` to real clients while `scenario` plays the operator."""
    ready: asyncio.Future[tuple[Federation, int]] = asyncio.get_running_loop().create_future()
    serves = asyncio.create_task(
        run_server(run, folder, EventLog(), on_listening=lambda *here: ready.set_result(here))
    )
    federation, port = await ready
    attend = []
    for name, spec in data.items():
        host = AppHost(ClientConfig(name=name, data=spec, device="cpu"), app)
        link = Link(LinkConfig(server=f"127.0.0.1:{port}", name=name, once=True), host)
        attend.append(asyncio.create_task(link.run()))
    await scenario(federation, OperatorLink(f"127.0.0.1:{port}"))
    finished = await serves
    await asyncio.gather(*attend, return_exceptions=True)
    return finished


def link_run(**changes: Any) -> RunConfig:
    sections = {"evaluate": {"test": ""}, "split": None, "server": {"listen": "127.0.0.1:0"}, **changes}
    sections["rounds"] = {"total": 3, "min_clients": 2, "evaluate_every": 1, **changes.get("rounds", {})}
    return config(parts=2, **sections)


def test_after_the_beginning_only_the_projection_travels(tmp_path: Path) -> None:
    specs = {
        name: f"npz:{write_npz(tmp_path / f'{name}.npz', range(10), [str(i) for i in range(10)])}" for name in "ab"
    }
    wide = {"task": {"width": 32}, "frame": {"dim": 64}}
    sessions = [{**session, "rounds": 3, "epochs": 1} for session in SESSIONS]

    async def scenario(federation: Federation, operator: OperatorLink) -> None:
        del federation, operator

    finished = asyncio.run(with_run(link_run(sessions=sessions, **wide), tmp_path / "run", specs, scenario))
    result = finished.result
    model = result.state.model
    sizes = {key: value.numel() * value.element_size() for key, value in model.items()}
    projection = sum(size for key, size in sizes.items() if key.startswith("projection."))
    assert projection < 0.5 * sum(sizes.values())
    rounds = result.history.rounds
    assert all(record.bytes_up > 2 * sum(sizes.values()) for record in rounds[:3])
    for record in rounds[3:]:
        if record.round in (4, 7):  # sums of the new classes and the new memory travel once
            continue
        assert record.bytes_up <= 1.05 * 2 * projection, (record.round, record.bytes_up, projection)
        assert record.bytes_down <= 1.05 * 2 * projection, (record.round, record.bytes_down, projection)


def test_an_operator_starts_a_session_and_names_its_classes(tmp_path: Path) -> None:
    every = [str(i) for i in range(10)]
    specs = {name: f"npz:{write_npz(tmp_path / f'{name}.npz', range(10), every)}" for name in "ab"}
    later = {"start": "operator", "rounds": 1}
    sessions = [{**later, "shots": 5}, {**later, "classes": ["9"]}]

    async def scenario(federation: Federation, operator: OperatorLink) -> None:
        with pytest.raises(RefusedError, match="the beginning is under way"):
            await operator.next_session([])
        await until(lambda: federation.control.waiting_session == 1, 40)
        status = await operator.status()
        assert (status.waiting_session, status.sessions, list(status.classes)) == (1, 2, BASE)
        for names, complaint in ([], "at least one"), (["0"], "there already"), (list("abcdefg"), "vertices"):
            with pytest.raises(ConfigError, match=complaint):
                await operator.next_session(names)
        await operator.next_session(["8", "7"])
        await until(lambda: federation.control.waiting_session == 2, 40)
        status = await operator.status()
        assert (status.session, list(status.classes)) == (1, [*BASE, "8", "7"])
        with pytest.raises(ConfigError, match="Leave out --class"):
            await operator.next_session(["6"])
        command = ["-m", "fednc.cli.main", "session", "next", "--server", operator.server]
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=asyncio.subprocess.PIPE)
        _, said = await process.communicate()
        assert (process.returncode, "session 2 of 2 starts" in said.decode()) == (0, True), said

    folder = tmp_path / "run"
    finished = asyncio.run(with_run(link_run(sessions=sessions), folder, specs, scenario))
    assert finished.summary["classes"] == [*BASE, "8", "7", "9"]
    assert finished.result.state.memory.seen_K.tolist() == [True] * 9 + [False] * 3
    exported = load(folder)
    assert exported.class_names == (*BASE, "8", "7", "9")
    assert exported(torch.randn(5, 1, 8, 8)).shape == (5, 9)


def test_the_exported_model_knows_only_the_classes_seen_so_far(tmp_path: Path) -> None:
    from fewshot_setting import clients, prepare

    from fednc.bench.local_grid import LocalGrid
    from fednc.server.surroundings import Surroundings

    run = config()
    prepared, _ = prepare(run)
    around = Surroundings()
    prepared._events.listen(lambda e: setattr(around.control, "stopping", e.get("round", 0) >= 3))
    with LocalGrid(run, clients(run)) as grid:
        result = prepared.execute(grid, around)  # stopped in the middle of session 1
    write_files(tmp_path, result, {})
    exported = load(tmp_path)
    assert exported.class_names == (*BASE, "6", "7")
    data = write_npz(tmp_path / "all.npz", range(10), [str(i) for i in range(10)], each=9)
    said = CliRunner().invoke(cli, ["predict", str(tmp_path), str(data), "--json", str(tmp_path / "out.json")])
    assert said.exit_code == 0, said.output
    out = json.loads((tmp_path / "out.json").read_text())
    assert {row["class"] for row in out["predictions"]} <= {*BASE, "6", "7"}
    assert out["metrics"]["examples"] == 8 * 9


# ---- compared ------------------------------------------------------------------------------------------------


def test_a_comparison_of_sessions_gives_plain_rows_and_pictures(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "bench" / "configs" / "fscil-digits.toml"
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    values["run"]["rounds"]["total"], values["run"]["task"]["width"] = 2, 8
    for session in values["run"]["sessions"]:
        session |= {"rounds": 1, "epochs": 2}
    values |= {"settings": values["settings"][2:], "seeds": [1]}
    values["tuning"]["rates"] = [0.03]
    plan = Comparison.model_validate(values)
    compared = compare(plan, {}, Bench(folder=tmp_path, command="fednc compare", workers=1))
    rows = session_rows(compared.final)
    assert [row["method"] for row in rows] == ["frame-dot", "cosine-ce", "nearest-mean"]
    for row in rows:
        assert set(row) == {"method", "split", "seed", "session_acc", "mean", "drop", "novel", "config_sha"}
        assert len(row["session_acc"]) == 3
        assert row["mean"] == pytest.approx(sum(row["session_acc"]) / 3, abs=1e-5)
    assert len({row["config_sha"] for row in rows}) == 3
    assert (tmp_path / "dirichlet-0.1-sessions.png").stat().st_size > 5000
