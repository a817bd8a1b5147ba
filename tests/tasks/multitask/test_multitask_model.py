"""The model of several dense tasks: pictures do not mix, tasks do, and only as far as they may.

Legend: T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from fednc.common.errors import ConfigError
from fednc.tasks.multitask.interaction import Attention, Sequences
from support.multitask_tasks import batch_of, guide_of, model_of, multitask, outputs_of

MODES = ("token", "location", "off")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_altering_a_picture_changes_no_other_one(mode: str, training: bool) -> None:
    task = multitask(interaction=mode)
    model, inputs = model_of(task).train(training), batch_of(task)[0]
    altered = inputs.clone()
    altered[1] = torch.randn_like(altered[1])
    before, after = (outputs_of(task, model, each) for each in (inputs, altered))
    others = [0, 2, 3]
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[1], after[1])
    alone = outputs_of(task, model, inputs[:1])
    torch.testing.assert_close(alone, before[:1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_task_sees_the_others_through_the_interaction_alone(mode: str) -> None:
    task = multitask(interaction=mode)
    model, inputs = model_of(task), batch_of(task)[0]
    before = model(inputs)
    block = model.mixers["segmentation"][0]
    for param in (*block.mix_norm.parameters(), *block.look_norm.parameters()):
        nn.init.zeros_(param)
    assert not bool(model.mixed(inputs)[:, 0].any())
    changed = {name: not torch.equal(value, before[name]) for name, value in model(inputs).items()}
    assert changed == {name: name == "segmentation" or mode != "off" for name in task.options.tasks}


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_of_a_task_reaches_the_mixers_of_others_through_the_interaction_alone(mode: str) -> None:
    task = multitask(interaction=mode)
    model, (inputs, *maps) = model_of(task), batch_of(task)
    only_depth = [
        value if name == "depth" else _unknown(value) for name, value in zip(task.options.tasks, maps, strict=True)
    ]
    loss, parts = task.loss(model, (inputs, *only_depth), guide_of(task))
    assert set(parts) == {"depth"}
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [param.grad for param in model.mixers["segmentation"].parameters()]
    reached = any(grad is not None and bool(grad.any()) for grad in grads)
    assert reached == (mode != "off")
    assert all(param.grad is None for param in model.necks["segmentation"].parameters())


def _unknown(value: torch.Tensor) -> torch.Tensor:
    return torch.full_like(value, 255) if value.dtype == torch.int64 else torch.zeros_like(value)


@pytest.mark.parametrize("mode", ["token", "location"])
def test_a_private_task_sees_the_others_but_is_not_seen(mode: str) -> None:
    task = multitask(interaction=mode, private=["depth"])
    model, inputs = model_of(task), batch_of(task)[0]
    before = model(inputs)
    for param in model.mixers["depth"].parameters():
        param.data += 1.0
    changed = {name for name, value in model(inputs).items() if not torch.equal(value, before[name])}
    assert changed == {"depth"}
    for param in model.mixers["edges"].parameters():
        param.data += 1.0
    assert not torch.equal(model(inputs)["depth"], before["depth"])


@pytest.mark.parametrize("mode", ["token", "location"])
def test_sequences_come_back_and_who_attends_to_whom_adds_up(mode: str) -> None:
    sequences, token = Sequences(mode, [False, True, False], torch.device("cpu")), torch.randn(2, 3, 5, 8)
    assert torch.equal(sequences.back(sequences.of(token), token.shape), token)
    attention, each = Attention(8, 2), sequences.of(token)
    allowed = sequences.allowed(5)
    share_TT = sequences.by_task(attention.weights(each, each, allowed), 3).detach()
    torch.testing.assert_close(share_TT.sum(dim=1), torch.ones(3))
    assert float(share_TT[0, 1]) == float(share_TT[2, 1]) == 0.0  # only the second task sees its own tokens
    assert float(share_TT[1, 1]) > 0


@pytest.mark.parametrize("mode", ["token", "location"])
def test_attention_is_the_softmax_of_products_of_one_picture(mode: str) -> None:
    """Two independent ways: the fused operation, and the weights that are shown, applied to the values."""
    sequences, token = Sequences(mode, [True, False, False], torch.device("cpu")), torch.randn(2, 3, 4, 8)
    attention, each = Attention(8, 1), sequences.of(token)
    allowed = sequences.allowed(4)
    by_hand = attention.weights(each, each, allowed) @ attention.value(each)
    torch.testing.assert_close(attention(each, each, allowed), by_hand, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_depth_is_the_number_of_blocks_and_changes_no_shape(depth: int) -> None:
    task = multitask(depth=depth)
    model, inputs = model_of(task), batch_of(task)[0]
    assert [len(model.mixers[name]) for name in task.options.tasks] == [depth] * 4  # type: ignore[arg-type]
    shapes = {name: tuple(value.shape) for name, value in model(inputs).items()}
    height, width = task.options.size
    assert shapes == {
        "segmentation": (4, task.run.frame.dim, height, width),
        "depth": (4, 1, height, width),
        "normals": (4, 3, height, width),
        "edges": (4, 1, height, width),
    }
    assert outputs_of(task, model, inputs).shape == (4, 4 + 1 + 3 + 1, height, width)
    one = {key for key in model_of(multitask(depth=1)).state_dict() if ".1." not in key}
    assert one <= set(model.state_dict())


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"backbone": "cnn"}, [16, 16]),
        ({"backbone": "resnet18", "stride": 8}, [16, 24]),
        ({"backbone": "pyramid", "stride": 2}, [17, 23]),
        ({"norm": "batch"}, [9, 40]),
    ],
)
def test_any_backbone_and_size_works(options: dict[str, object], size: Sequence[int]) -> None:
    task = multitask(size=list(size), **options)
    model, inputs = model_of(task), torch.randn(2, 3, *size)
    assert outputs_of(task, model, inputs).shape == (2, 9, *size)


def test_a_backbone_without_feature_maps_is_refused() -> None:
    with pytest.raises(ConfigError, match="backbone"):
        multitask(backbone="mlp").new_model()
