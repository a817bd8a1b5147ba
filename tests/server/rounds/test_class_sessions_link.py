"""Sessions over the link: what travels, an operator who starts them, what is exported, how they compare."""

from __future__ import annotations

import asyncio
import json
import sys
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fednc.bench.compare.class_sessions import session_rows, session_table
from fednc.bench.compare.engine import compare
from fednc.bench.compare.plan import Comparison
from fednc.bench.compare.rows import Bench
from fednc.cli.main import app as cli
from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link.link import Link, LinkConfig
from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError, RefusedError
from fednc.common.model_export import load
from fednc.ops.operator_client import OperatorLink
from fednc.server.main import Finished, run_server
from fednc.server.operations.commands import StartSession
from fednc.server.rounds.control import RunControl
from fednc.server.rounds.result_files import write_files
from fednc.server.storage.event_log import EventLog
from support.fewshot_rounds import stop_after
from support.fewshot_run import BASE, DISCRIMINANT, DOT, SESSIONS, config, write_npz
from support.local_servers import until

Scenario = Callable[[RunControl, OperatorLink], Awaitable[None]]


async def with_run(run: RunConfig, folder: Path, data: dict[str, str], scenario: Scenario) -> Finished:
    """Serve `run` to real clients while `scenario` plays the operator."""
    control = RunControl()
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serves = asyncio.create_task(
        run_server(run, folder, EventLog(), control=control, on_listening=lambda _, port: ready.set_result(port))
    )
    port = await ready
    attend = []
    for name, spec in data.items():
        host = AppHost(ClientConfig(name=name, data=spec, device="cpu"), app)
        link = Link(LinkConfig(server=f"127.0.0.1:{port}", name=name, once=True), host)
        attend.append(asyncio.create_task(link.run()))
    await scenario(control, OperatorLink(f"127.0.0.1:{port}"))
    finished = await serves
    await asyncio.gather(*attend, return_exceptions=True)
    return finished


def link_run(**changes: Any) -> RunConfig:
    sections = {"evaluate": {"test": ""}, "split": None, "server": {"listen": "127.0.0.1:0"}, **changes}
    sections["rounds"] = {"total": 3, "min_clients": 2, "evaluate_every": 1, **changes.get("rounds", {})}
    return config(parts=2, **sections)


@pytest.mark.parametrize("method", [DOT, DISCRIMINANT], ids=["vertex", "discriminant"])
def test_after_the_base_only_the_projection_travels(method: dict[str, Any], tmp_path: Path) -> None:
    specs = {
        name: f"npz:{write_npz(tmp_path / f'{name}.npz', range(10), [str(i) for i in range(10)])}" for name in "ab"
    }
    wide = {"task": {"width": 32}, "frame": {"dim": 64}}
    sessions = [{**session, "rounds": 3, "epochs": 1} for session in SESSIONS]

    async def scenario(control: RunControl, operator: OperatorLink) -> None:
        del control, operator

    finished = asyncio.run(
        with_run(link_run(sessions=sessions, method=method, **wide), tmp_path / "run", specs, scenario)
    )
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

    async def scenario(control: RunControl, operator: OperatorLink) -> None:
        with pytest.raises(RefusedError, match="the run is in its first stage"):
            await operator.ask(StartSession())
        await until(lambda: control.waiting_session == 1, 40)
        status = await operator.status()
        assert (status.waiting_session, status.sessions, list(status.classes)) == (1, 2, BASE)
        for names, complaint in ([], "at least one"), (["0"], "exist already"), (list("abcdefg"), "vertices"):
            with pytest.raises(ConfigError, match=complaint):
                await operator.ask(StartSession(tuple(names)))
        await operator.ask(
            StartSession(
                (
                    "8",
                    "7",
                )
            )
        )
        await until(lambda: control.waiting_session == 2, 40)
        status = await operator.status()
        assert (status.session, list(status.classes)) == (1, [*BASE, "8", "7"])
        with pytest.raises(ConfigError, match="Leave out --class"):
            await operator.ask(StartSession(("6",)))
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
    from fednc.bench.local_grid import LocalGrid
    from fednc.server.rounds.context import Surroundings
    from support.fewshot_run import clients, prepare

    run = config()
    prepared, _ = prepare(run)
    around = Surroundings()
    prepared.events.listen(stop_after(around.control, 3))
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


# ---- comparisons ---------------------------------------------------------------------------------------------


def test_a_comparison_of_sessions_gives_plain_rows_and_pictures(tmp_path: Path) -> None:
    path = Path(__file__).parents[3] / "bench" / "configs" / "fscil-digits.toml"
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    values["run"]["rounds"]["total"], values["run"]["task"]["width"] = 2, 8
    for session in values["run"]["sessions"]:
        session |= {"rounds": 1, "epochs": 2}
    here = "dirichlet-0.1"
    values |= {"settings": [one for one in values["settings"] if one["name"] == here], "seeds": [1]}
    values["variants"] = [one for one in values["variants"] if here in one.pop("settings", [here])]
    values["parts"] = [one for one in values["parts"] if "raw+cosine" not in one["against"]]
    values["tuning"]["rates"] = [0.03]
    plan = Comparison.model_validate(values)
    compared = compare(plan, {}, Bench(folder=tmp_path, command="fednc compare", workers=1))
    rows = session_rows(compared.final)
    assert [row["method"] for row in rows] == [variant.name for variant in plan.variants]
    for row in rows:
        assert set(row) == {"method", "split", "seed", "session_acc", "mean", "drop", "novel", "config_sha"}
        assert len(row["session_acc"]) == 3
        assert row["mean"] == pytest.approx(sum(row["session_acc"]) / 3, abs=1e-5)
    assert len({row["config_sha"] for row in rows}) == len(plan.variants) > 1
    assert (tmp_path / "dirichlet-0.1-sessions.png").stat().st_size > 5000
    for row in compared.final:
        stages = row["summary"]["sessions"]
        assert [one["bytes_up"] > 0 and one["seconds"] > 0 for one in row["session_costs"]] == [True] * 3
        lines = [line for line in session_table(compared, here) if line.startswith(f"| {row['variant']} |")]
        assert len(lines) == 1
        forgotten = 100 * (stages[0]["base"] - stages[-1]["base"])
        assert lines[0].endswith(f"| {forgotten:.1f} |")
        base = " / ".join(f"{100 * stage['base']:.1f}" for stage in stages)
        assert f"| {base} |" in lines[0]
        assert lines[0] in (tmp_path / "table.md").read_text()
