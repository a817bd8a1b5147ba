"""The image models: shapes, sizes, and initial weights that no method changes."""

from __future__ import annotations

import pytest
import torch

from fednc.tasks.vision.backbones import build_backbone
from fednc.tasks.vision.options import ImageOptions
from support.image_tasks import CLASSES, DIM, make_data, make_guide, make_task


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("method", "model", "size", "norm"),
    [
        ("fedavg", "cnn", 8, "group"),
        ("fedetf", "cnn", 9, "batch"),
        ("fedetf", "resnet18", 16, "group"),
        ("fedavg", "resnet18", 16, "batch"),
        ("fedavg", "mobilenetv2", 8, "group"),
        ("fedetf", "mobilenetv2", 8, "batch"),
    ],
)
def test_models_have_their_shapes_and_gradients_reach_every_parameter(method, model, size, norm):
    torch.manual_seed(0)
    task = make_task(method, model=model, norm=norm, size=size, channels=3)
    net, data = task.build_model(), make_data(task, examples=3)
    (batch,) = data.train_batches(3, torch.Generator().manual_seed(0))
    assert net(batch[0]).shape == (3, DIM)
    loss, parts = task.loss(net, batch, make_guide(task, data))
    loss.backward()
    assert loss.shape == ()
    torch.testing.assert_close(sum(parts.values()), loss.detach())
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_backbones_have_the_published_sizes():
    """ResNet-18 and MobileNetV2 without classifier, three input channels (torchvision counts 11,689,512 with a 7x7
    stem and 513,000 of classifier, and 3,504,872 with 1,281,000 of classifier)."""
    big = {"classes": CLASSES, "norm": "batch"}
    resnet, width = build_backbone(ImageOptions(model="resnet18", **big))
    assert (parameters(resnet), width) == (11_689_512 - 513_000 - 64 * 3 * (49 - 9), 512)
    mobile, width = build_backbone(ImageOptions(model="mobilenetv2", **big))
    assert (parameters(mobile), width) == (3_504_872 - 1_281_000, 1280)
    cnn, _ = build_backbone(ImageOptions(classes=CLASSES, channels=1))
    assert parameters(cnn) < 120_000


@pytest.mark.parametrize("model", ["cnn", "resnet18"])
def test_a_deep_stage_is_still_four_pixels_wide(model):
    """The stems are for small images: 32x32 must not shrink to a point before the last stage."""
    backbone, _ = build_backbone(ImageOptions(classes=CLASSES, model=model))
    seen = []
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *call: seen.append(call[2].shape[-1]))
    backbone(torch.zeros(1, 3, 32, 32))
    assert min(seen) >= 4


@pytest.mark.parametrize("model", ["cnn", "resnet18", "mobilenetv2"])
def test_all_methods_start_from_the_same_bits(model):
    states = []
    for method in ("fedavg", "fedprox", "fedetf", "fednc"):
        torch.manual_seed(7)
        state = make_task(method, model=model).build_model().state_dict()
        states.append({key: value for key, value in state.items() if not key.startswith("head.")})
    for other in states[1:]:
        assert other.keys() == states[0].keys()
        assert all(torch.equal(other[key], states[0][key]) for key in other)
