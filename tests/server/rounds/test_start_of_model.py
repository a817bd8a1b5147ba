"""Where a model starts and what of it moves: own weights, frozen blocks, adapters; counted on a real link."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from fednc.cli.main import app as command
from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link.link import Link, LinkConfig
from fednc.common.config.run import RunConfig, parse_run, parse_run_json
from fednc.common.errors import ConfigError
from fednc.common.model_export import load
from fednc.common.tasks import adapters, discovery
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.tasks.api import Task
from fednc.protos import federation_pb2 as pb
from fednc.server.main import Finished, run_server
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event
from support.contract_run import CLIENTS, config
from support.runs_on_grids import in_one_process

NORMED = {"norm": "batch", "augment": "none"}


def served(run: RunConfig, folder: Path, count: int = 2) -> tuple[Finished, list[Event]]:
    """A whole run over a real link, with its files in `folder`."""
    events = EventLog()
    heard: list[Event] = []
    events.listen(heard.append)

    async def main() -> Finished:
        ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serves = asyncio.create_task(
            run_server(run, folder, events, on_listening=lambda _, port: ready.set_result(port))
        )
        port, attending = await ready, []
        for index in range(count):
            host = AppHost(ClientConfig(name=f"c{index}", data="digits", device="cpu", val_share=0.1), app)
            link = LinkConfig(
                server=f"127.0.0.1:{port}", name=f"c{index}", once=True, part=pb.Part(index=index, of=count)
            )
            attending.append(asyncio.create_task(Link(link, host).run()))
        finished = await serves
        await asyncio.gather(*attending, return_exceptions=True)
        return finished

    return asyncio.run(main()), heard


def body_of(task: Task) -> dict[str, Tensor]:
    """The drawn body of a model as a file of weights would hold it."""
    state = task.build_model().state_dict()
    names = [key for key in state if key.startswith(task.body)]
    return {key.removeprefix(task.body): state[key].contiguous() for key in names}


def small(**changes: Any) -> RunConfig:
    usual = {"method": {"name": "fedavg"}, "rounds": {"total": 2, "min_clients": 2}, "split": {"parts": 2}}
    return config(**{**usual, "server": {"listen": "127.0.0.1:0"}, **changes})


def test_frozen_tensors_travel_once_and_trained_ones_in_each_round(tmp_path: Path) -> None:
    """Bytes on a real link, against the sizes of the tensors."""
    freeze = {"width": 32, "freeze": ["layer1", "layer2"]}
    plain, _ = served(small(task={"width": 32}), tmp_path / "plain")
    frozen, _ = served(small(task=freeze), tmp_path / "frozen")
    traffic = frozen.result.traffic
    assert plain.result.traffic.once == plain.result.traffic.each_round == traffic.once
    saved = traffic.once - traffic.each_round
    assert saved > 0.2 * traffic.once
    for before, after in zip(plain.result.history.rounds, frozen.result.history.rounds, strict=True):
        assert before.bytes_up - after.bytes_up == pytest.approx(2 * saved, rel=0.02)
        # the model goes down once in each round, after training; the first round begins with all of it too
        assert before.bytes_down - after.bytes_down == pytest.approx(2 * saved, rel=0.02)
    summary = json.loads((tmp_path / "frozen" / "summary.json").read_text())
    assert summary["model_bytes"] == {"once": traffic.once, "each_round": traffic.each_round}


@pytest.mark.parametrize(
    "task",
    [
        {**NORMED, "freeze": ["layer1", "layer2"]},
        {**NORMED, "freeze": ["layer1"], "adapter_rank": 2, "adapt": ["layer3"]},
        {"adapter_rank": 2, "augment": "none"},
        {"freeze": ["layer3", "projection"], "norm": "batch"},
    ],
    ids=["frozen", "frozen and adapted", "adapted", "body and projection"],
)
@pytest.mark.parametrize("method", ["fednc", "scaffold"])
def test_what_is_frozen_keeps_its_bits_and_the_rest_moves(task: dict[str, Any], method: str) -> None:
    """Also the running statistics of batch normalisation, and for a method that keeps state."""
    run = config(task=task, method={"name": method}, rounds={"total": 1}, train={"batch": 128})
    before = FederatedRun(run, EventLog()).state.model
    result = in_one_process(run, CLIENTS, app)
    found = discovery.get(run)
    fixed = {key for key in before if found.is_frozen(key)}
    assert {key for key, value in before.items() if torch.equal(value, result.state.model[key])} == fixed
    assert fixed
    assert all(found.combining(key) == Aggregation.FIXED for key in fixed)
    if "layer3" not in task.get("freeze", ()) and task.get("norm") == "batch":
        assert any("running_mean" in key for key in fixed)


def test_only_adapters_of_the_body_are_sent_back_and_the_export_is_an_ordinary_model(tmp_path: Path) -> None:
    run = small(task={"adapter_rank": 2, "width": 32}, rounds={"total": 2, "min_clients": 2})
    finished, _ = served(run, tmp_path / "run")
    task, state = finished.result.task, finished.result.state.model
    body = [key for key in task.trained_keys(task.new_model(), task.stage(1)) if key.startswith("backbone.")]
    assert body
    assert all(map(adapters.is_adapter, body))
    model = load(tmp_path / "run")
    assert not [key for key in model.state_dict() if "parametrizations" in key]
    inputs, labels = next(iter(task.load_test("digits").eval_batches(2000)))
    adapted = task.new_model()
    adapted.load_state_dict(state, strict=False)
    adapted.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.model(inputs), adapted(inputs), rtol=1e-4, atol=1e-5)
        accuracy = float((model(inputs).argmax(dim=1) == labels).float().mean())
    assert accuracy == pytest.approx(finished.result.history.rounds[-1].test["accuracy"], abs=1e-6)


def test_own_weights_reach_clients_without_their_path(tmp_path: Path) -> None:
    task = discovery.get(config())
    torch.manual_seed(77)
    weights = body_of(task)
    path = tmp_path / "secret-place" / "own.safetensors"
    path.parent.mkdir()
    save_file({f"module.{key}": value for key, value in weights.items()}, path)
    run = small(task={"weights": str(path)}, train={"epochs": 0}, method={"name": "fedavg", "readout": "ridge"})
    said = run.for_clients()
    assert "secret-place" not in said
    assert parse_run_json(said, source="test").task.weights == ""
    finished, heard = served(run, tmp_path / "run")
    for key, value in weights.items():
        assert torch.equal(finished.result.state.model[f"backbone.{key}"], value)
    (event,) = [each for each in heard if each.kind == "weights"]
    assert "own.safetensors" in event.text
    assert run.digest != small(train={"epochs": 0}, method={"name": "fedavg", "readout": "ridge"}).digest


def test_a_continued_run_needs_the_file_no_more(tmp_path: Path) -> None:
    run = config(task={"weights": str(tmp_path / "gone.safetensors")})
    with pytest.raises(ConfigError, match="cannot be read"):
        FederatedRun(run, EventLog())
    assert FederatedRun(run, EventLog(), resumes=True).state.model


def test_unknown_blocks_are_refused_with_the_known_ones() -> None:
    task = discovery.get(config(task={"model": "resnet18", "freeze": ["stem", "stage1"]}))
    with pytest.raises(ConfigError, match=r"no block called 'stage1'. Its blocks are stem, layer1, .*projection"):
        task.new_model()
    with pytest.raises(ConfigError, match="no block called 'nowhere'"):
        discovery.get(config(task={"adapter_rank": 2, "adapt": ["nowhere"]})).new_model()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": {"weights": "w.pt"}, "init": {"kind": "nio"}}, r"leave out \[init\]"),
        ({"task": {"adapter_rank": 2}, "init": {"gain": 2.0}}, r"leave out \[init\]"),
        ({"task": {"adapt": ["layer1"]}}, "adapter_rank to 1 or more"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        discovery.get(config(**changes))


def test_check_shows_blocks_and_bytes_and_reads_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    body = body_of(discovery.get(config()))
    save_file(body, tmp_path / "w.safetensors")
    path = tmp_path / "run.toml"
    path.write_text(
        '[task]\nclasses = ["0","1","2","3","4","5","6","7","8","9"]\nwidth = 8\nsize = 8\nchannels = 1\n'
        f'weights = "{tmp_path / "w.safetensors"}"\nfreeze = ["layer1"]\n'
    )
    result = CliRunner().invoke(command, ["check", str(path), "--json", "-"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["blocks"][:3] == ["layer1", "layer2", "layer3"]
    assert found["bytes_each_round"] < found["bytes_once"]
    assert found["weights"].startswith(f"{len(body)} tensors loaded")


def test_the_digest_of_a_run_without_these_keys_is_as_before() -> None:
    plain = parse_run({"task": {"classes": ["a", "b"]}}).decisive()
    assert set(plain["task"]) == {"name", "classes"}
    assert "ridge" not in plain["method"]
