"""The class memory of the image task before the projection, and the projection that is fitted to it.

Legend: N examples, W width before the projection, K label space.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fednc.client.app.flower_app import app as fednc_app
from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError
from fednc.common.learning.class_memory import ClassMemory, ClassSums
from fednc.common.learning.fitted_projection import fitted_projection
from fednc.common.learning.frame import unit
from fednc.common.learning.ridge import ridge_regression
from fednc.common.tasks import discovery
from fednc.common.tasks.round_guide import guide_at
from fednc.tasks.image.task import ImageTask
from support.contract_run import config, run_on_local
from support.image_tasks import make_data, make_task

DEEP = {"name": "fednc", "memory_space": "backbone"}


def deep_task(**method: object) -> ImageTask:
    task = discovery.get(parse_run({**make_task().run.model_dump(), "method": {**DEEP, **method}}))
    assert isinstance(task, ImageTask)
    return task


def scored(readout: str) -> tuple[Tensor, Tensor, Tensor, ClassSums]:
    """(scores of the read-out, unit backbone features, labels, their class sums)"""
    task = deep_task(readout=readout)
    torch.manual_seed(0)
    model, data = task.build_model().eval(), make_data(task, 40)
    batch = next(iter(data.eval_batches(40)))
    frame = task.frame(1)
    with torch.no_grad():
        feat_NW, label_N = task.embed(model, batch)
        sums = ClassSums.zeros(task.label_space, task.memory_dim, moment=True).add_batch(feat_NW, label_N)
        memory = ClassMemory.empty(task.label_space, task.memory_dim).update(sums, 0.0, task.run.method.ridge)
        score_NK = task.scores(model, batch[0], guide_at(task, frame.etf_KD, memory, 1))
    return score_NK, unit(model.backbone(batch[0]).detach()), label_N, sums


def test_a_class_mean_is_that_of_unit_backbone_features() -> None:
    score_NK, feat_NW, label_N, sums = scored("memory")
    mean_KW = torch.stack([feat_NW[label_N == c].mean(dim=0) for c in range(3)])
    torch.testing.assert_close(sums.mean_KD.float(), mean_KW, atol=1e-6, rtol=1e-5)
    far_NK = torch.cdist(feat_NW, mean_KW)
    assert torch.equal(score_NK.argmax(dim=1), far_NK.argmin(dim=1))


def test_the_ridge_read_out_is_ridge_regression_on_pooled_backbone_features() -> None:
    score_NK, feat_NW, label_N, sums = scored("ridge")
    assert sums.moment_DD is not None
    weight_KW, intercept_K = ridge_regression(sums.sum_KD, sums.count_K, sums.moment_DD, 0.01)
    torch.testing.assert_close(score_NK / 4.0, feat_NW @ weight_KW.T + intercept_K, atol=1e-5, rtol=1e-4)
    assert (score_NK.argmax(dim=1) == label_N).double().mean() > 0.9  # 144 dimensions for 40 examples


def test_training_is_the_same_and_only_the_read_out_differs(tmp_path: Path) -> None:
    ends = [
        run_on_local(config(method={"name": "fednc", **more}, rounds={"total": 2}), fednc_app, tmp_path)
        for more in ({}, {"memory_space": "backbone"}, {"memory_space": "backbone", "moment_codec": "int16"})
    ]
    shallow, deep, coarse = (end.state for end in ends)
    for key in shallow.model:
        assert torch.equal(shallow.model[key], deep.model[key])
        assert torch.equal(shallow.model[key], coarse.model[key])
    assert torch.equal(coarse.memory.mean_KD, deep.memory.mean_KD)
    assert coarse.memory.metric_DD is not None
    assert not torch.equal(coarse.memory.metric_DD, deep.memory.metric_DD)
    assert shallow.memory.mean_KD.shape[1] < deep.memory.mean_KD.shape[1]
    assert ends[0].history.rounds[-1].test != ends[1].history.rounds[-1].test


def test_a_fitted_projection_follows_from_the_memory_and_is_never_sent_back(tmp_path: Path) -> None:
    run = config(method={**DEEP, "projection": "fitted", "readout": "vertex"}, rounds={"total": 2})
    result = run_on_local(run, fednc_app, tmp_path)
    memory, task = result.state.memory, result.task
    assert memory.metric_DD is not None
    wanted_DW = fitted_projection(memory.mean_KD, memory.seen_K, memory.metric_DD, result.frame.etf_KD)
    assert torch.equal(result.state.model["projection.weight"], wanted_DW)
    assert not result.state.model["projection.bias"].any()
    sent = task.trained_keys(task.build_model(), task.stage(1))
    assert sent
    assert not any(key.startswith("projection.") for key in sent)


def test_a_drawn_projection_stays_and_a_trained_one_does_not(tmp_path: Path) -> None:
    drawn, longer, trained = (
        run_on_local(config(method={"name": "fednc", **more}, rounds={"total": rounds}), fednc_app, tmp_path)
        for more, rounds in (({"projection": "drawn"}, 1), ({"projection": "drawn"}, 2), ({}, 1))
    )
    weights = [end.state.model["projection.weight"] for end in (drawn, longer, trained)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "method", [{"memory_space": "projected"}, {"memory_model": "local"}, {"head": "cosine", "readout": "memory"}]
)
def test_a_fitted_projection_needs_a_memory_of_the_global_backbone_and_vertices(method: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="towards the vertices"):
        deep_task(projection="fitted", **method)


@pytest.mark.parametrize(
    "method", [{"readout": "blend"}, {"anchor": 1.0}, {"rehearsal": 1.0}, {"memory_source": "vertex"}]
)
def test_uses_that_need_the_memory_in_the_space_of_the_frame_are_refused(method: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="before the projection"):
        deep_task(**method)


def test_a_task_with_a_memory_of_its_own_refuses_the_key() -> None:
    run = {"task": {"name": "fewshot", "classes": ["a", "b"], "size": 8, "channels": 1}, "method": DEEP}
    with pytest.raises(ConfigError, match="decides itself which features"):
        discovery.get(parse_run(run))
    with pytest.raises(ConfigError, match="not one linear layer"):
        discovery.get(parse_run({**run, "method": {"name": "fednc", "projection": "drawn"}}))
