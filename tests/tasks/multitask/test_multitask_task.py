"""The task of several dense tasks as a whole: contract, runs, who owns what, what is said of bad data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import fednc
from fednc.bench.local_grid import LocalGrid
from fednc.cli.main import app as command
from fednc.client.app.host import ClientConfig
from fednc.common import flower_adapter, seeds
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError, DataError, UnusableValuesError
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.model_export import load
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Part
from fednc.common.wire import arrays, messages
from fednc.common.wire.messages import Instruction
from fednc.server.rounds.context import Surroundings
from fednc.server.rounds.run import FederatedRun
from fednc.server.storage.event_log import EventLog
from fednc.tasks.dense.preparation import read_data
from fednc.tasks.multitask.model import task_of
from fednc.testing import TaskContract
from support.multitask_tasks import (
    CLASSES,
    DATA,
    MULTITASK,
    SMALL,
    batch_of,
    guide_of,
    model_of,
    multitask,
    outputs_of,
)

WITH = "scenes:images=12,test=6,objects=2"


class TestAllTasks(TaskContract):
    task = "multitask"
    exports = False  # capturing the graph takes long: tests/tasks_long/multitask
    data = WITH
    options: ClassVar = {
        **SMALL,
        "tasks": ["segmentation", "parts", "saliency", "normals", "depth", "edges"],
        "interaction": "token",
        "class_weights": "balanced",
    }
    tables: ClassVar = {"frame": {"dim": 8}, "method": {"name": "fednc"}, "train": {"batch": 4}}


class TestWithoutClasses(TaskContract):
    task = "multitask"
    exports = False
    data = WITH
    options: ClassVar = {"tasks": ["depth", "edges"], "size": [16, 16], "width": 8, "channels_each": 8}
    tables: ClassVar = {"method": {"name": "fedavg"}, "train": {"batch": 4}}


# ---- who owns what ------------------------------------------------------------------------------------------

OWNERS = {"anna": "label+depth", "bert": "depth+normals+edges"}
RUN: dict[str, Any] = {
    "task": dict(MULTITASK),
    "method": {"name": "fednc"},
    "frame": {"dim": 8},
    "train": {"optimizer": "adamw", "lr": 0.01, "batch": 4},
    "rounds": {"total": 2, "min_clients": 2},
    "evaluate": {"test": "scenes:test=6,objects=2", "batch": 4},
}


def sites(owners: Mapping[str, str]) -> dict[str, str]:
    return {
        name: f"scenes:images=12,objects=2,seed={i},maps={maps}" for i, (name, maps) in enumerate(owners.items())
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    fednc.run(RUN, sites(OWNERS), device="cpu", progress=False, folder=folder)
    return folder


def test_each_client_is_measured_on_its_own_tasks_and_the_test_data_on_all(finished: Path) -> None:
    rounds = json.loads((finished / "rounds.json").read_text())
    every = {"miou", "depth_rmse", "normal_error", "edge_f"}
    assert every <= set(rounds[-1]["test"])
    table = [line.split("|")[1:-1] for line in (finished / "clients.md").read_text().splitlines()]
    head = [cell.strip() for cell in table[0]]
    measured = {
        row[0].strip(): {h for h, cell in zip(head, row, strict=True) if cell.strip()} for row in table[2:]
    }
    assert measured["anna"] & every == {"miou", "depth_rmse"}
    assert measured["bert"] & every == {"depth_rmse", "normal_error", "edge_f"}
    assert measured["test"] & every == every
    shown = {path.name for path in (finished / "examples").iterdir()}
    assert {"pictures.png", "interaction.png", "round-000001-pictures.png"} <= shown


def test_predict_repeats_the_runs_metrics_and_writes_each_task(finished: Path, tmp_path: Path) -> None:
    out, found = tmp_path / "out", tmp_path / "found.json"
    data = RUN["evaluate"]["test"]
    result = CliRunner().invoke(command, ["predict", str(finished), data, "--out", str(out), "--json", str(found)])
    assert result.exit_code == 0, result.output
    told = json.loads(found.read_text())
    test = json.loads((finished / "rounds.json").read_text())[-1]["test"]
    for name in ("miou", "depth_rmse", "normal_error", "edge_f"):
        assert told["metrics"][name] == pytest.approx(test[name], abs=1e-9)
    assert {"classes", "mean depth", "mean tilt", "edges"} <= set(told["predictions"][0])
    kinds = {"overlay", *RUN["task"]["tasks"]}
    assert len(list(out.iterdir())) == 6 * len(kinds)
    for kind in kinds - {"overlay"}:
        with Image.open(out / f"test_scene_0-{kind}.png") as image:
            assert image.size == (16, 16)


def test_predicted_files_can_be_read_back_as_labels(finished: Path, tmp_path: Path) -> None:
    """The reader of folders takes the files of a prediction: depth and normals come back nearly as they were."""
    model, task = load(finished), multitask()
    data = task.load_test("scenes:test=2,objects=2")
    (batch,) = data.eval_batches(2)
    with torch.no_grad():
        output = model(batch[0])
    files = task.prediction_files(batch, output, ["a.png", "b.png"])
    for name in ("a", "b"):
        for kind, folder in (("depth", "depth"), ("normals", "normals"), ("segmentation", "label")):
            place = tmp_path / "test" / folder / f"{name}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(files[f"{name}-{kind}.png"])
        place = tmp_path / "test" / "image" / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(place)
    back = read_data(f"folder:{tmp_path}", "test", task.options, 4, ("label", "depth", "normals"))
    spans = task.spans
    depth = output[:, spans["depth"]].clamp(0, 1)[:, 0]
    torch.testing.assert_close(back.maps["depth"].nan_to_num(0.0), depth, atol=1e-4, rtol=0)
    torch.testing.assert_close(back.maps["normals"], output[:, spans["normals"]], atol=0.02, rtol=0)
    assert torch.equal(back.maps["label"].long(), output[:, spans["segmentation"]].argmax(dim=1))


def test_every_prediction_of_a_picture_file_has_its_size(finished: Path, tmp_path: Path) -> None:
    Image.effect_noise((50, 33), 90).convert("RGB").save(tmp_path / "one.png")
    out, found = tmp_path / "out", tmp_path / "found.json"
    picture = str(tmp_path / "one.png")
    result = CliRunner().invoke(
        command, ["predict", str(finished), picture, "--out", str(out), "--json", str(found)]
    )
    assert result.exit_code == 0, result.output
    assert "nan" not in result.output
    assert "metrics" not in json.loads(found.read_text())
    for kind in RUN["task"]["tasks"]:
        with Image.open(out / f"one-{kind}.png") as image:
            assert image.size == (50, 33)
            if kind == "normals":
                vectors = np.asarray(image) / 127.5 - 1
                np.testing.assert_allclose(np.linalg.norm(vectors, axis=2), 1, atol=0.02)


@pytest.mark.parametrize("stretch", [False, True])
def test_a_task_is_averaged_over_its_owners_and_nobody_else_sends_it(stretch: bool) -> None:
    """What all share is averaged over all, and moved further by as much as their tasks differ."""
    options = {**MULTITASK, "stretch": stretch}
    run = parse_run(
        {**RUN, "task": options, "method": {"name": "fedavg"}, "rounds": {"total": 1, "min_clients": 2}}
    )
    task = multitask()
    members = [ClientConfig(name=name, data=spec, val_share=0) for name, spec in sites(OWNERS).items()]
    sent = {member.name: update_of(run, member) for member in members}
    of_task = {name: {task_of(key) for key in update} for name, update in sent.items()}
    assert of_task == {"anna": {"", "segmentation", "depth"}, "bert": {"", "depth", "normals", "edges"}}
    with LocalGrid(run, members) as grid:
        prepared = FederatedRun(run, EventLog(), torch.device("cpu"))
        before = {key: value.clone() for key, value in prepared.state.model.items()}
        prepared.execute(grid, Surroundings(name_of=grid.name_of))
        after = prepared.state.model
    times = alike_of(sent) ** -0.5 if stretch else 1.0
    assert times == 1.0 or 1.1 < times < 1.4
    for key, value in after.items():
        start, owners = before[key].double(), [update[key].double() for update in sent.values() if key in update]
        change = torch.stack(owners).mean(dim=0) - start if owners else 0.0
        expected = start + change * (1.0 if task_of(key) else times)
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=0)
    assert set(task.owned(task.load_train(members[0].data, None, None)).values()) == {12}


def test_the_server_moves_shared_layers_by_at_most_the_root_of_the_number_of_tasks() -> None:
    task = multitask()
    assert task.stretch(1.0) == 1.0
    assert task.stretch(1 / 3) == pytest.approx(math.sqrt(3))
    assert task.stretch(1e-6) == pytest.approx(math.sqrt(len(task.options.tasks)))
    assert multitask(stretch=False).stretch(0.5) == 1.0


def alike_of(sent: Mapping[str, Mapping[str, Tensor]]) -> float:
    """For clients with equally many pictures: by how many of them a client's own tensor is trained, on average."""
    own = {name: {key for key in update if task_of(key)} for name, update in sent.items()}
    shares = [sum(key in other for other in own.values()) / len(own) for keys in own.values() for key in keys]
    return sum(shares) / len(shares)


def update_of(run: RunConfig, member: ClientConfig) -> dict[str, Tensor]:
    """What a client sends in round 1."""
    task = discovery.get(run)
    torch.manual_seed(seeds.derive(run.seed, "model"))
    state = task.new_model().state_dict()
    with LocalGrid(run, [member]) as grid:
        node = flower_adapter.node_id(member.name)
        frame = task.frame(seeds.derive(run.seed, "frame"))
        guide = messages.guide_record(frame, ClassMemory.empty(frame.vertices, task.memory_dim))
        content = messages.instruction_content(Instruction.under(run, 1), arrays.to_record(state), guide)
        message = grid.create_message(content, messages.TRAIN, node, "1")
        (reply,) = grid.send_and_receive([message])
    return arrays.from_record(messages.update_of(reply.content))


def test_a_private_task_stays_where_its_labels_are() -> None:
    task = multitask(private=["depth"])
    model = model_of(task)
    sent = task.shared_keys(model)
    assert not [key for key in sent if task_of(key) == "depth"]
    inputs, span = batch_of(task)[0], task.spans["depth"]
    output = outputs_of(task, model, inputs)
    assert bool(output[:, span].isnan().all())  # not trained here
    assert not bool(output[:, : span.start].isnan().any())
    assert "mean depth" not in task.described(output)[0]
    model.trained["depth"].done.fill_(True)  # type: ignore[operator]
    assert not bool(outputs_of(task, model, inputs).isnan().any())


@pytest.mark.parametrize("worth", [math.nan, math.inf])
def test_a_model_that_diverged_is_told_and_nobody_is_blamed(worth: float) -> None:
    """Its depths are not left out of the statistics, as those of a private task that was not trained are."""
    task = multitask(private=["edges"])
    model, batch, guide = model_of(task), batch_of(task), guide_of(task)
    diverged = outputs_of(task, model, batch[0])
    diverged[:, task.spans["depth"]] = worth
    task.predict = lambda *_: diverged  # type: ignore[method-assign]
    stats = task.statistics(model, batch, guide)
    assert int(stats["depth_pixels"]) > 0
    assert not int(stats["edge_f_pixels"])
    if math.isnan(worth):
        with pytest.raises(UnusableValuesError):
            messages.check_stats(stats, task.no_statistics())
    else:
        with pytest.raises(UnusableValuesError):
            task.check_statistics(stats, len(batch[0]))


def test_a_split_may_leave_each_part_some_labels() -> None:
    owners = [["segmentation"], ["depth", "edges"]]
    task = multitask(split={"kind": "iid", "parts": 2, "owners": owners})
    parts = [task.load_train(DATA, Part(index, 2), task.run.split) for index in range(2)]
    assert [{name for name, count in task.holdings(part).items() if count} for part in parts] == [
        {"segmentation"},
        {"depth", "edges"},
    ]
    assert int(parts[1].count_K.sum()) == 0
    with pytest.raises(ConfigError, match="owners"):
        multitask(split={"kind": "iid", "parts": 3, "owners": owners})


def test_packed_pictures_come_back_with_the_labels_that_they_had(tmp_path: Path) -> None:
    task = multitask()
    train, test = task.load_train(f"{DATA},maps=depth", None, None), task.load_test(DATA)
    np.savez(tmp_path / "packed.npz", **task.pack(train, test))
    back = task.load_train(task.packed_spec(tmp_path / "packed.npz"), None, None)
    assert task.holdings(back) == task.holdings(train) == {"segmentation": 0, "depth": 8, "normals": 0, "edges": 0}


# ---- bad data, before round one -----------------------------------------------------------------------------


def arrays_of(**changes: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    plain = {"x_train": np.zeros((2, 16, 16, 3), np.uint8), "depth_train": np.full((2, 16, 16), 0.5, np.float32)}
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"depth_train": np.full((2, 16, 8), 0.5, np.float32)}, "16x16"),
        ({"depth_train": np.full((2, 16, 16), -1.0, np.float32)}, "expected 0 or more"),
        ({"depth_train": np.full((2, 16, 16), np.inf, np.float32)}, "expected 0 or more"),
        ({"depth_train": np.full((2, 16, 16), np.nan, np.float32)}, "not one pixel"),
        ({"edges_train": np.full((2, 16, 16), 3, np.uint8)}, "edges map of .* has the value 3"),
        ({"normals_train": np.full((2, 16, 16, 3), np.nan, np.float32)}, "finite vectors"),
        ({"y_train": np.full((2, 16, 16), 9, np.uint8)}, "unknown label value 9"),
        (
            {"x_train": np.zeros((2, 20, 16, 3), np.uint8), "depth_train": np.zeros((2, 20, 16), np.float32)},
            "20x16",
        ),
    ],
)
def test_labels_that_the_run_cannot_use_are_named(
    changes: dict[str, np.ndarray[Any, Any]], told: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "site.npz", **arrays_of(**changes))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=told):
        multitask().load_train(f"npz:{tmp_path / 'site.npz'}", None, None)


def test_a_client_whose_labels_belong_to_no_task_of_the_run_is_told_by_check(tmp_path: Path) -> None:
    given = arrays_of(part_train=np.zeros((2, 16, 16), np.uint8))
    del given["depth_train"]
    np.savez(tmp_path / "site.npz", **given)  # type: ignore[arg-type]
    run = tmp_path / "run.toml"
    run.write_text(
        f'[task]\nname = "multitask"\nclasses = {json.dumps(list(CLASSES))}\nsize = [16, 16]\nwidth = 8\n'
        "[frame]\ndim = 8\n"
    )
    result = CliRunner().invoke(command, ["check", str(run), "--data", f"npz:{tmp_path / 'site.npz'}"])
    assert result.exit_code != 0
    told = " ".join(result.output.split())
    assert "no map of label, depth, normals, edges" in told
    assert "It has part" in told


def test_tasks_and_parts_of_which_no_site_has_labels_are_told_by_check(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text(
        f'[task]\nname = "multitask"\ntasks = ["segmentation", "depth", "parts", "edges"]\n'
        f'classes = {json.dumps(list(CLASSES))}\nparts = ["background", "upper", "lower", "wheel"]\n'
        "size = [16, 16]\nwidth = 8\n[frame]\ndim = 8\n"
    )

    def checked(*maps: str) -> tuple[int, str]:
        specs = [f"scenes:images=9,objects=2,seed={number},maps={each}" for number, each in enumerate(maps)]
        given = [part for spec in specs for part in ("--data", spec)]
        result = CliRunner().invoke(command, ["check", str(run), *given])
        return result.exit_code, " ".join(f"{result.output} {result.exception}".split())

    code, told = checked("label", "depth+part")
    assert code != 0
    assert "no site has an example of 1 of the run's tasks: 'edges'" in told
    assert "no site has an example of 1 of the run's parts: 'wheel'" in told
    assert "no pixel of some of the run's parts: 'wheel'" in checked("label+part")[1]  # one site: a note
    run.write_text(run.read_text().replace(', "wheel"', ""))
    assert checked("label", "depth+part", "edges")[0] == 0


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"tasks": ["depth", "depth"]}, "twice"),
        ({"private": ["parts"]}, "not one of task.tasks"),
        ({"private": ["segmentation"]}, "class memory"),
        ({"tasks": ["depth"], "private": ["depth"]}, "every task"),
        ({"classes": []}, "classes"),
        ({"heads": 3}, "heads"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(task: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        multitask(**task)
