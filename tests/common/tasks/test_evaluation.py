"""The evaluation loop: sums over all batches, the model in evaluation mode, no gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fednc.common.tasks.evaluation import evaluate, evaluation_batches
from support.image_tasks import make_data, make_guide, make_task


class StopError(Exception):
    """What `before_batch` raises."""


@pytest.mark.parametrize("batch", [1, 7, 40, 64])
def test_the_statistics_cover_all_batches(batch: int) -> None:
    task, data = make_task(), make_data(make_task(), 40)
    model, guide = task.build_model().eval(), make_guide(task)
    found = evaluate(task, model, data, guide, batch)
    with torch.no_grad():
        each = [task.statistics(model, one, guide) for one in data.eval_batches(batch)]
    assert found["examples"] == 40
    for key in each[0]:
        expected = each[0][key]
        for stats in each[1:]:
            expected = expected + stats[key]
        assert torch.equal(found[key], expected)


def test_the_model_is_in_evaluation_mode_and_gradients_are_off_until_the_loop_ends() -> None:
    task = make_task()
    model, seen = task.build_model().train(), 0
    for _ in evaluation_batches(model, make_data(task, 10), 4):
        assert not model.training
        assert not torch.is_grad_enabled()
        seen += 1
    assert seen == 3
    assert torch.is_grad_enabled()


def test_an_error_before_a_batch_ends_the_loop_and_gradients_are_on_again() -> None:
    task, asked = make_task(), []

    def ask() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise StopError

    model: nn.Module = task.build_model()
    with pytest.raises(StopError):
        evaluate(task, model, make_data(task, 12), make_guide(task), 4, ask)
    assert len(asked) == 2
    assert torch.is_grad_enabled()
