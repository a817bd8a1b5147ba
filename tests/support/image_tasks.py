"""Small image tasks, data and files, shared by the tests of the image task."""

from __future__ import annotations

import torch

from fednc.common.config.run import parse_run
from fednc.common.learning.frame import draw_frame
from fednc.common.learning.round_context import Guide
from fednc.common.tasks import discovery
from fednc.tasks.image.task import ImageTask
from fednc.tasks.vision.dataset import ImageData

CLASSES = ["ant", "bee", "cat"]
DIM = 16


def make_task(method="fednc", vertices=0, split=None, **options) -> ImageTask:
    task = {"name": "image", "classes": CLASSES, "size": 8, "channels": 1, "width": 8, **options}
    run = {"task": task, "method": {"name": method}, "frame": {"dim": DIM, "vertices": vertices}, "split": split}
    made = discovery.get(parse_run(run))
    assert isinstance(made, ImageTask)
    return made


def make_guide(task: ImageTask, data: ImageData | None = None) -> Guide:
    frame = draw_frame(task.label_space, DIM, seed=0)
    return Guide(
        method=task.run.method,
        etf_KD=frame.etf_KD,
        mean_KD=0.5 * frame.etf_KD.roll(1, 0),
        seen_K=torch.ones(task.label_space, dtype=torch.bool),
        count_K=torch.ones(task.label_space) if data is None else data.count_K,
    )


def make_data(task: ImageTask, examples: int = 50, seed: int = 0, **other) -> ImageData:
    draw = torch.Generator().manual_seed(seed)
    size, channels = task.options.size, task.options.channels
    return ImageData(
        pixel_NCHW=torch.randint(0, 256, (examples, channels, size, size), dtype=torch.uint8, generator=draw),
        label_N=torch.randint(0, len(CLASSES), (examples,), generator=draw),
        label_space=task.label_space,
        mean_C11=torch.full((channels, 1, 1), 0.5),
        std_C11=torch.full((channels, 1, 1), 0.25),
        **other,
    )
