"""`fednc export`: what leaves fednc gives the scores of the model, says what it is, and needs no fednc."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import fednc
from fednc.cli.main import app
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import Frame
from fednc.common.learning.readout import READOUTS
from fednc.common.model_export import ExportedModel, load, read_manifest
from fednc.ops.export import formats
from fednc.ops.export.card import card, evidence_of
from fednc.ops.export.description import describe
from support import fewshot_run
from support.installed_plugins import Site, site

__all__ = ["site"]

ROOT = Path(__file__).parents[2]
TABLES: dict[str, Any] = {
    "seed": 7,
    "task": {"size": 8, "channels": 1, "width": 8, "mean": [0.3], "std": [0.4]},
    "frame": {"dim": 16},
    "rounds": {"total": 1},
    "split": {"parts": 2, "alpha": 0.3},
    "evaluate": {"test": "digits"},
}


def command(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def train(folder: Path, **tables: Any) -> Path:
    values = {**TABLES, **tables, "task": {**TABLES["task"], "classes": [str(d) for d in range(10)]}}
    fednc.run(values, {"anna": "digits", "bert": "digits"}, folder=folder, progress=False)
    return folder


def onnx_outputs(path: Path, raw: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: raw})


def scores(model: ExportedModel, inputs: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(inputs).numpy()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("export") / "run")


class EveryReadOut(ExportedModel):
    """The scores of all read-outs side by side, so that one conversion covers them."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.read_out(each.name, inputs) for each in READOUTS], dim=1)

    def read_out(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        method = self.guide.method.model_copy(update={"readout": name})
        return self.task.predict(self.model, inputs, replace(self.guide, method=method))


def test_onnxruntime_gives_the_scores_of_every_read_out(tmp_path: Path) -> None:
    one = load(train(tmp_path / "run", method={"name": "fednc", "readout": "ridge"}))
    guide = one.guide
    frame = Frame.without_vertices(one.task.run.frame.dim)
    memory = ClassMemory(  # a run keeps only what its own read-out needs; any metric will do for the others
        mean_KD=guide.mean_KD,
        seen_K=guide.seen_K,
        metric_DD=torch.eye(guide.mean_KD.shape[1]) + 0.1 if guide.metric_DD is None else guide.metric_DD,
        ridge_KD=guide.ridge_KD,
        ridge_K=guide.ridge_K,
    )
    every = EveryReadOut(one.task, one.model, frame, memory, one.class_names)
    every.etf_KD = one.etf_KD
    raw = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), np.uint8))
    description = describe(every, (8, 8, 1), 1, "uint8")
    (tmp_path / "every.onnx").write_bytes(formats.to_onnx(every, raw[:3], description))
    # normalised here on its own, so that the graph's normalisation is checked too
    inputs = (raw.float().permute(0, 3, 1, 2) / 255 - 0.3) / 0.4
    for some in (slice(0, 1), slice(0, 5)):
        found, _ = onnx_outputs(tmp_path / "every.onnx", raw[some].numpy())
        for each, scores_BC in zip(READOUTS, np.split(found, found.shape[1] // 10, axis=1), strict=True):
            with torch.no_grad():
                wanted_BC = every.read_out(each.name, inputs[some]).numpy()
            assert np.allclose(scores_BC, wanted_BC, rtol=1e-4, atol=1e-4), each.name


def test_a_model_of_class_sessions(tmp_path: Path) -> None:
    from fednc.server.rounds.result_files import summary_of, write_files

    result, _ = fewshot_run.carry_out(fewshot_run.config(method=fewshot_run.NEAREST))
    write_files(tmp_path, result, summary_of("sessions", result))
    assert command("export", tmp_path, "--torch-export", "-o", tmp_path / "out").exit_code == 0
    model = load(tmp_path)
    pixel_BHWC = np.random.default_rng(2).integers(0, 256, (4, 8, 8, 1), np.uint8)
    raw = torch.from_numpy(pixel_BHWC)
    wanted = scores(model, model.task.graph_input().prepare(raw))
    found, _ = torch.export.load(tmp_path / "out" / "model.pt2").module()(raw)
    assert found.shape == (4, 10)
    assert np.allclose(found.detach().numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_a_task_without_classes(site: Site, tmp_path: Path) -> None:
    source = (ROOT / "examples/plugins/survival/survival.py").read_text()
    site.install("survival-copy", {"fednc.tasks": {"survival": "{}:Survival"}}, source)
    draw = np.random.default_rng(3)
    rows = [
        "age,dose,time,event",
        *(
            f"{a},{b},{t},{e}"
            for a, b, t, e in zip(
                draw.normal(60, 9, 40),
                draw.normal(2, 1, 40),
                draw.uniform(1, 90, 40),
                draw.integers(0, 2, 40),
                strict=True,
            )
        ),
    ]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    task = {"name": "survival", "features": {"age": [60.0, 9.0], "dose": [2.0, 1.0]}, "horizon": 100.0}
    values = {"task": task, "method": {"name": "fedavg"}, "rounds": {"total": 1, "min_clients": 1}}
    fednc.run(values, {"anna": f"csv:{tmp_path / 'rows.csv'}"}, folder=tmp_path / "run", progress=False)
    done = command("export", tmp_path / "run", "--onnx", "--torch-export", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    inputs = draw.normal(size=(7, 2)).astype(np.float32)
    (found,) = onnx_outputs(tmp_path / "out" / "model.onnx", inputs)
    wanted = scores(load(tmp_path / "run"), torch.from_numpy(inputs))
    assert np.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert "Use it without fednc" in (tmp_path / "out" / "card.md").read_text()


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All formats of a model whose temperature is 2."""
    manifest = json.loads((run / "model/model.json").read_text())
    (run / "model/model.json").write_text(json.dumps({**manifest, "temperature": 2.0}))
    folder = tmp_path_factory.mktemp("exported")
    done = command("export", run, "--onnx", "--torch-export", "--safetensors", "-o", folder)
    assert done.exit_code == 0, done.output
    return folder


def test_the_temperature_is_in_the_graph_and_in_predict(run: Path, exported: Path) -> None:
    pixel_BHWC = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), np.uint8)
    found, probability_BC = onnx_outputs(exported / "model.onnx", pixel_BHWC)
    model = load(run)
    inputs = model.task.graph_input().prepare(torch.from_numpy(pixel_BHWC))
    guide = replace(model.guide, temperature=1.0)
    with torch.no_grad():
        undivided_BC = model.task.predict(model.model, inputs, guide)
    assert np.allclose(found, undivided_BC.numpy() / 2, rtol=1e-4, atol=1e-4)
    assert np.allclose(probability_BC, (undivided_BC / 2).softmax(dim=1).numpy(), atol=1e-4)
    assert not np.allclose(probability_BC, undivided_BC.softmax(dim=1).numpy(), atol=1e-3)
    answer = run / "predicted.json"
    assert command("predict", run, "digits", "--json", answer).exit_code == 0
    first = next(iter(model.task.load_test("digits").eval_batches(1)))[0]
    with torch.no_grad():
        best = float((model.task.predict(model.model, first, guide) / 2).softmax(dim=1).max())
    assert json.loads(answer.read_text())["predictions"][0]["confidence"] == pytest.approx(best, abs=1e-5)


def test_torch_export_loads_and_equals(run: Path, exported: Path) -> None:
    raw = torch.randint(0, 256, (6, 8, 8, 1), dtype=torch.uint8)
    found, _ = torch.export.load(exported / "model.pt2").module()(raw)
    model = load(run)
    assert formats.difference(scores(model, model.task.graph_input().prepare(raw)), found.detach().numpy()) < 1e-5


def test_safetensors_and_its_description(run: Path, exported: Path) -> None:
    from safetensors.torch import load_file

    tensors, state = load_file(exported / "weights.safetensors"), load(run).state_dict()
    assert set(tensors) == {key for key, value in state.items() if value is not None}
    assert all(torch.equal(tensors[key], state[key]) for key in tensors)
    told = json.loads((exported / "weights.json").read_text())
    assert told["class_names"] == [str(d) for d in range(10)]
    assert (told["temperature"], told["readout"], told["input"]["shape"]) == (2.0, "discriminant", [8, 8, 1])


def test_provenance_is_in_the_metadata(run: Path, exported: Path) -> None:
    told = onnxruntime.InferenceSession(exported / "model.onnx").get_modelmeta().custom_metadata_map
    manifest = json.loads((run / "model/model.json").read_text())
    for key in ("frame_sha256", "weights_sha256"):
        assert told[key] == manifest[key]
    assert told["config_sha256"] == manifest["run_digest"]
    assert json.loads(told["temperature"]) == 2.0
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 8, 8, 1]


def test_no_file_names_a_folder_of_this_machine_or_holds_a_pickle(exported: Path) -> None:
    places = [str(ROOT).encode(), sys.prefix.encode(), str(Path.home()).encode() + b"/", b"site-packages"]
    for path in exported.iterdir():
        assert [place for place in places if place in path.read_bytes()] == [], path.name
    with zipfile.ZipFile(exported / "model.pt2") as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not name.endswith(".pkl"), name
            assert [place for place in places if place in content] == [], name


def test_the_ten_lines_of_the_card_run_without_fednc(run: Path, exported: Path) -> None:
    text = (exported / "card.md").read_text()
    lines = text.split("```python\n")[1].split("```")[0]
    assert "onnxruntime" in lines
    assert len(lines.splitlines()) <= 10
    Image.fromarray(np.random.default_rng(4).integers(0, 256, (20, 30), np.uint8)).save(exported / "image.png")
    blocked = "import sys; sys.modules['fednc'] = None; sys.modules['torch'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + lines], cwd=exported, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    image = Image.open(exported / "image.png").resize((8, 8), Image.Resampling.BILINEAR)
    found = scores(load(run), (torch.from_numpy(np.asarray(image, np.float32) / 255)[None, None] - 0.3) / 0.4)
    assert done.stdout.split()[0] == str(found[0].argmax())


def test_the_card_states_the_facts_of_the_run(run: Path, exported: Path) -> None:
    text = (exported / "card.md").read_text()
    last = json.loads((run / "rounds.json").read_text())[-1]
    assert f"{last['test']['accuracy']:.2%}" in text
    for name in range(10):
        assert f"| {name} | {last['test'][f'accuracy/{name}']:.2%} |" in text
    assert json.loads((run / "model/model.json").read_text())["frame_sha256"] in text
    assert "fednc, read out by `discriminant`" in text
    assert "calibrated with a temperature of 2" in text
    clients = [json.loads(line) for line in (run / "clients.jsonl").read_text().splitlines()]
    assert {one["client"] for one in clients} == {"anna", "bert"}
    for place, value in enumerate(sorted(one["accuracy"] for one in clients), 1):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| site {place} |"))
        assert f" {value:.2%} " in row
    assert f"accuracy of 2 clients: min {last['spread']['min']:.2%}" in text
    assert "anna" not in text
    assert "bert" not in text


HOSTILE = (
    "x` <img src=x onerror=alert(1)> `",
    "![c](http://evil.example/p.png)",
    "[x](javascript:alert(1))",
    "a\\|b",
    "<b>4</b>",
    "*6*",
    "# seven",
    "&lt;",
    "_nine_",
    "``",
)


@pytest.mark.parametrize("weakest", range(10))
def test_no_name_is_markup_in_a_card(run: Path, weakest: int) -> None:
    exported, manifest = load(run), read_manifest(run)
    told = evidence_of(run, manifest)
    exported.class_names = HOSTILE
    exported.seen_K = torch.zeros(10)
    name = HOSTILE[weakest]
    metrics = {f"accuracy/{one}": 0.1 if one == name else 0.9 for one in HOSTILE if "/" not in one}
    primary = replace(told.history.primary, unit=name)
    rounds = [replace(one, test={"accuracy": 0.5, **metrics}) for one in told.history.rounds]
    evidence = replace(
        told,
        history=replace(told.history, rounds=rounds, primary=primary),
        clients={name: {"accuracy": 0.5}},
        summary={**told.summary, "ended": name},
    )
    described = describe(exported, (8, 8, 1), 1, manifest=manifest)
    described = described.model_copy(update={"preprocessing": {"columns": list(HOSTILE)}})
    text = card(exported, manifest, described, evidence, ["model.onnx"], client_names=True)
    blocks = MarkdownIt("js-default", {"html": True, "linkify": False}).parse(text)
    kinds = {one.type for block in blocks for one in [block, *(block.children or [])]}
    markup = ("html_block", "html_inline", "image", "link_open", "em_open", "s_open")
    assert kinds.isdisjoint(markup), kinds & {*markup}
    headings = [blocks[place + 1].content for place, one in enumerate(blocks) if one.type == "heading_open"]
    assert headings == [
        "run",
        "Training",
        "Results",
        "By class",
        "By client, on what it holds out",
        "Intended use and limits",
        "Use it without fednc",
        "Origin",
    ]


def test_nothing_is_replaced_unless_forced(run: Path, tmp_path: Path) -> None:
    assert command("export", run, "--safetensors", "-o", tmp_path).exit_code == 0
    before = (tmp_path / "weights.safetensors").stat().st_ino
    refused = command("export", run, "--safetensors", "-o", tmp_path)
    assert refused.exit_code == 2
    assert "--force" in refused.output
    assert (tmp_path / "weights.safetensors").stat().st_ino == before
    assert command("export", run, "--safetensors", "-o", tmp_path, "--force").exit_code == 0
    assert command("export", run, "--card", "-o", tmp_path).exit_code == 2


def test_what_cannot_be_exported_says_why(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such folder" in command("export", tmp_path / "nowhere", "--card").output
    assert "nothing to export" in command("export", run).output
    assert "no model in it" in command("export", tmp_path, "--card").output
    checkpoints = tmp_path / "half" / "checkpoints"
    checkpoints.mkdir(parents=True)
    half = {"config": {"rounds": {"total": 9}}, "history": [{"round": 1}]}
    (checkpoints / "round-000001.json").write_text(json.dumps(half))
    said = command("export", tmp_path / "half", "--onnx").output
    assert "the run is not finished (round 1 of 9, resumable)" in said
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    missing = command("export", run, "--onnx", "-o", tmp_path / "out")
    assert missing.exit_code == 8
    assert "pip install 'fednc[export]'" in missing.output
    assert not (tmp_path / "out").exists()


def test_a_prediction_that_branches_on_values_is_refused(run: Path) -> None:
    from fednc.common.errors import ConfigError
    from fednc.ops.export.graph import capture, sample_inputs

    class Branches(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(inputs if bool(inputs.sum() > 0) else -inputs)

    model = load(run)
    model.model.backbone = Branches(model.model.backbone)
    with pytest.raises(ConfigError, match=r"cannot be exported as a graph .*--safetensors"):
        capture(model, sample_inputs(model))
