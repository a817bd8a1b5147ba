"""Changes of training images: reproducible, label-preserving in range and shape, and open to plug-ins.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fednc.common.config.run import parse_run
from fednc.common.errors import ConfigError
from fednc.tasks.image.task import ImageTask
from fednc.tasks.vision.augmentations import SHIPPED, Augmentation, apply, draw
from support.image_tasks import CLASSES, make_data, make_task

ALL = tuple(each.name for each in SHIPPED)


@pytest.mark.parametrize("kind", SHIPPED, ids=ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_change_keeps_shape_and_range_and_follows_its_numbers(kind, channels):
    pixel_BCHW = torch.rand(64, channels, 12, 12, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        kind().apply(pixel_BCHW, draw((kind(),), 64, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    )
    assert first.shape == pixel_BCHW.shape
    assert first.dtype == torch.float32
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1 + 1e-6
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    changed = (first != pixel_BCHW).flatten(1).any(dim=1)
    assert float(changed.float().mean()) > 0.3  # some leave half of the images alone


@pytest.mark.parametrize("kind", SHIPPED, ids=ALL)
def test_an_image_is_changed_by_its_own_numbers_alone(kind):
    pixel_BCHW = torch.rand(20, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    draw_PB = draw((kind(),), 20, torch.Generator().manual_seed(1))
    whole = kind().apply(pixel_BCHW, draw_PB)
    one = torch.cat([kind().apply(pixel_BCHW[i : i + 1], draw_PB[:, i : i + 1]) for i in range(20)])
    torch.testing.assert_close(whole, one)


def test_erase_covers_a_square_of_the_stated_size():
    pixel_BCHW = torch.rand(200, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    kind = next(each for each in SHIPPED if each.name == "erase")()
    out = kind.apply(pixel_BCHW, draw((kind,), 200, torch.Generator().manual_seed(1)))
    covered = (out != pixel_BCHW).sum(dim=(1, 2, 3))
    touched = covered[covered > 0]
    assert 60 < len(touched) < 140
    assert int(touched.min()) >= 9  # a quarter of 16 is 4 pixels, at most one cut off on each side
    assert int(touched.max()) <= 81


def test_a_run_lists_them_and_only_training_batches_change():
    task = make_task(augment=list(ALL))
    data = make_data(task, 30, augmentations=task._chosen_augmentations)
    plain = make_data(task, 30)
    batches = [list(data.train_batches(8, torch.Generator().manual_seed(s))) for s in (1, 1, 2)]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches[0], batches[1], strict=True))
    assert not torch.equal(batches[0][0][0], batches[2][0][0])
    labels = torch.cat([label_B for _, label_B in batches[0]])
    assert torch.equal(labels.sort().values, data.label_N.sort().values)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(data.eval_batches(8), plain.eval_batches(8), strict=True))


def test_no_list_leaves_the_random_stream_as_it_was():
    task = make_task()
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    list(make_data(task, 30).train_batches(8, first))
    torch.randperm(30, generator=second)
    assert torch.equal(first.get_state(), second.get_state())


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no change called 'flop'; choose among flip, crop"):
        make_task(augment=["flip", "flop"])


class Invert(Augmentation):
    """A plug-in's own: negatives."""

    name, numbers = "invert", 0

    def apply(self, pixel_BCHW: Tensor, draw_PB: Tensor) -> Tensor:
        return 1 - pixel_BCHW


class OurImages(ImageTask):
    """A plug-in's task that only adds an augmentation."""

    name = "ours"
    augmentations = (*SHIPPED, Invert)


def test_a_plug_in_adds_its_own_by_deriving_the_task():
    values = {"name": "image", "classes": CLASSES, "size": 8, "channels": 1, "augment": ["invert"]}
    task = OurImages(parse_run({"task": values}))
    (chosen,) = task._chosen_augmentations
    pixel = torch.rand(4, 1, 8, 8)
    assert torch.equal(apply((chosen,), pixel, draw((chosen,), 4, torch.Generator())), 1 - pixel)
