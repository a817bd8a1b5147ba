"""Rehearsal in the image task: the projection rehearses the memory of the features before it.

Legend: B batch, W width before the projection, K label space.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fednc.client.app.flower_app import app as fednc_app
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError
from fednc.common.learning.round_context import Guide
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Part
from fednc.tasks.image.task import ImageTask
from support.contract_run import CLIENTS, config, run_on_local
from support.image_tasks import CLASSES, make_data, make_guide, make_task

METHOD = {"name": "fednc", "readout": "vertex", "rehearsal": 2.0}
K, W = len(CLASSES), 9 * 2 * 8


def setting(**method: object) -> tuple[ImageTask, nn.Module, tuple[Tensor, Tensor], Guide]:
    run = make_task().run
    task = discovery.get(parse_run({**run.model_dump(), "method": {**METHOD, **method}}))
    assert isinstance(task, ImageTask)
    torch.manual_seed(0)
    data = make_data(task, 20)
    mean_KW = 0.9 * torch.nn.functional.normalize(torch.rand(K, W), dim=1)
    guide = replace(make_guide(task, data), mean_KD=mean_KW, seen_K=torch.tensor([True, False, True]))
    return task, task.build_model(), next(iter(data.eval_batches(20))), guide


def gradients(strength: float) -> dict[str, Tensor]:
    task, model, batch, guide = setting()
    task.loss(model, batch, replace(guide, memory_ramp=strength))[0].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_rehearsal_teaches_the_projection_and_nothing_else() -> None:
    on, off = gradients(1.0), gradients(0.0)
    changed = {name.split(".")[0] for name in on if not torch.equal(on[name], off[name])}
    assert changed == {"projection"}


def test_rehearsal_is_the_cross_entropy_of_each_seen_class_once() -> None:
    task, model, batch, guide = setting(scale=8.0)
    _, parts = task.loss(model, batch, guide)
    length = model.backbone(batch[0]).norm(dim=1).mean()  # type: ignore[operator]
    loss = 0.0
    for c in (0, 2):
        weight, bias = model.projection.weight, model.projection.bias  # type: ignore[union-attr]
        again = weight @ (length * guide.mean_KD[c]) + bias  # type: ignore[operator]
        loss -= (8.0 * guide.etf_KD @ again / again.norm()).log_softmax(dim=0)[c].item() / 2
    assert parts["rehearsal"].item() == pytest.approx(2.0 * loss, rel=1e-5)


def test_the_memory_holds_unit_features_from_before_the_projection(tmp_path: Path) -> None:
    run = config(method=METHOD, rounds={"total": 2})
    result = run_on_local(run, fednc_app, tmp_path)
    task = result.task
    model = task.build_model()
    model.load_state_dict(result.state.model)
    model.eval()
    feats, labels = [], []
    for index, client in enumerate(CLIENTS):
        train, _ = task.load_train("digits", Part(index, len(CLIENTS)), run.split).hold_out(0.0, 0)
        del client
        for pixel_BCHW, label_B in train.eval_batches(512):
            with torch.no_grad():
                feats.append(model.backbone(pixel_BCHW))  # type: ignore[operator]
            labels.append(label_B)
    feat_NW, label_N = torch.nn.functional.normalize(torch.cat(feats), dim=1), torch.cat(labels)
    found_KW = result.state.memory.mean_KD
    assert found_KW.shape == (10, task.memory_dim) == (10, W)
    for c in range(10):  # clients hold out some examples, so their means are close to these but not equal
        assert torch.nn.functional.cosine_similarity(found_KW[c], feat_NW[label_N == c].mean(dim=0), dim=0) > 0.99


def test_each_source_gives_another_model(tmp_path: Path) -> None:
    ends = []
    for source in ("memory", "own", "shuffled", "stale", "random"):
        run = config(method={**METHOD, "memory_source": source}, rounds={"total": 3})
        ends.append(run_on_local(run, fednc_app, tmp_path).state.model["projection.weight"])
    ends.append(
        run_on_local(
            config(method={**METHOD, "rehearsal": 0.0}, rounds={"total": 3}), fednc_app, tmp_path
        ).state.model["projection.weight"]
    )
    assert all(not torch.equal(a, b) for i, a in enumerate(ends) for b in ends[:i])


@pytest.mark.parametrize(
    "method",
    [
        {"readout": "memory"},
        {"readout": "blend"},
        {"anchor": 1.0},
        {"target_blend": 0.5},
        {"memory_source": "vertex"},
    ],
)
def test_uses_that_need_a_memory_beside_the_vertices_are_refused(method: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="takes the class memory before the projection"):
        setting(**method)


def test_trained_class_vectors_rehearse_features_as_they_are() -> None:
    task, *_ = setting(head="cosine", loss="ce", readout="head")
    assert task.memory_dim == task.run.frame.dim
