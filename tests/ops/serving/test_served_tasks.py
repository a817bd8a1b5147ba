"""Every kind of model is served in its own form: rows of a table, a number to predict, windows, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fednc.common.config.run import parse_run
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.model_export import export, load
from fednc.common.tasks import discovery
from fednc.ops.serving.models import WantedModel
from fednc.ops.serving.sources import FolderSource
from support.served_models import RunningServer

TABLE = {"name": "tabular", "numeric": ["age", "height"], "categorical": {"sex": ["f", "m"]}, "target": "ill"}
RUNS: dict[str, dict[str, Any]] = {
    "table": {"task": {**TABLE, "kind": "classification", "classes": ["no", "yes"]}},
    "number": {"task": {**TABLE, "kind": "regression"}},
    "signal": {
        "task": {
            "name": "signal",
            "classes": ["rest", "walk"],
            "window": 32,
            "stride": 32,
            "channels": ["x", "y", "z"],
        }
    },
    "pictures": {"task": {"name": "segmentation", "classes": ["road", "tree"], "size": [16, 24]}},
}


def exported(folder: Path, name: str) -> Path:
    table = RUNS[name]
    method = {} if name != "number" else {"method": {"name": "fedavg"}}
    run = parse_run({**table, **method, "frame": {"dim": 16}})
    task = discovery.get(run)
    torch.manual_seed(0)
    model, frame = task.build_model(), task.frame(0)
    memory = ClassMemory.empty(task.label_space, task.memory_dim)
    if task.label_space:
        memory = ClassMemory(
            mean_KD=torch.nn.functional.normalize(torch.randn(task.label_space, task.memory_dim), dim=1),
            seen_K=torch.ones(task.label_space, dtype=torch.bool),
            metric_DD=torch.eye(task.memory_dim),
        )
    export(folder, model, task, frame, memory, run)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_answers_are_those_of_the_exported_model(tmp_path: Path, name: str) -> None:
    folder = exported(tmp_path / name, name)
    model = load(folder)
    (form,) = model.task.request_forms()
    assert form.shape is not None
    values = np.random.default_rng(0).random((3, *form.shape))
    with torch.no_grad():
        expected = model(form.read(values.astype({"FP32": np.float32, "FP64": np.float64}[form.datatype])))
    with RunningServer(FolderSource(), WantedModel("m", str(folder))) as server:
        described = server.ask("/v2/models/m").json
        assert described["inputs"] == [{"name": "input", "datatype": form.datatype, "shape": [-1, *form.shape]}]
        given = {"name": "input", "datatype": form.datatype, "shape": list(values.shape), "data": values.tolist()}
        answer = server.ask("/v2/models/m/infer", {"inputs": [given]})
        assert answer.status == 200, answer.body
        outputs = {each["name"]: np.reshape(each["data"], each["shape"]) for each in answer.json["outputs"]}
        assert set(outputs) <= {each["name"] for each in described["outputs"]}
        if name == "number":
            assert np.allclose(outputs["output"], expected.numpy(), atol=1e-4)
        elif name == "pictures":
            assert np.array_equal(outputs["class"], expected.argmax(dim=1).numpy())
            assert "probabilities" not in outputs  # large, so only if asked for
            asked = {"inputs": [given], "outputs": [{"name": "probabilities"}]}
            (found,) = server.ask("/v2/models/m/infer", asked).json["outputs"]
            assert found["shape"] == [3, 2, 16, 24]
        else:
            assert np.allclose(outputs["probabilities"], expected.softmax(dim=1).numpy(), atol=1e-5)
        if name == "table":
            data = values.tolist()
            data[0][0] = None  # the age is not known
            assert server.ask("/v2/models/m/infer", {"inputs": [{**given, "data": data}]}).status == 200
