"""`fednc bench trainer`: images per second of the shipped trainer and of a plain PyTorch loop with the same model.

Called by the command. Random images on the device, one process. The loops take turns, so a machine that slows
down slows all of them. On a GPU a second plain loop runs as CUDA graphs, as the trainer does. The overhead of a
method is the extra time over the faster plain loop.

Legend: N images, B batch, C channels, H height, W width, K classes, D feature width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fednc.client.link.work_hooks import Hooks
from fednc.client.training.cuda_graphs import Steps, beside_default_stream, capture_for
from fednc.client.training.trainer import train
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.device import device_name, pick_device
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import draw_frame
from fednc.common.tasks import discovery
from fednc.common.tasks.api import Task
from fednc.common.tasks.round_guide import guide_at
from fednc.tasks.vision.backbones import build_backbone
from fednc.tasks.vision.dataset import ImageData
from fednc.tasks.vision.options import ImageOptions

OURS = ("fednc", "fedavg")
CLASSES, SIZE, CHANNELS = 10, 32, 3
_PRODUCT = 1024, 4096  # side of the matrices multiplied to measure the device: CPU, GPU
_PRODUCT_TRIES = 5


def measure(
    model: str,
    *,
    norm: str,
    width: int,
    images: int,
    batch: int,
    repeats: int,
    device: str,
    threads: int,
    precision: str,
) -> dict[str, Any]:
    """Best of `repeats` epochs over `images` random images, for fednc, fedavg and the plain loops.

    Returns:
        Images per second of each; `overhead` of fednc and fedavg: their time over that of the faster plain loop,
        minus 1; arithmetic per second in that loop and in a product of large matrices.

    Raises:
        ConfigError: there is no such model or device.
    """
    torch.set_num_threads(threads)
    here, network = pick_device(device), {"model": model, "norm": norm, "width": width}
    runs = {name: _run(name, network, batch, precision) for name in OURS}
    loops = {name: _ours(run, images, here) for name, run in runs.items()}
    flops, loops["plain"] = _plain(runs["fedavg"], images, here, replayed=False)
    if here.type == "cuda":
        _, loops["replayed"] = _plain(runs["fedavg"], images, here, replayed=True)
    best = _best(loops, repeats, here)
    plain_s = min(best[name] for name in best if name not in OURS)
    done, possible = flops / plain_s / 1e12, _product_tflop_s(here, precision)
    return {
        **network,
        "device": device_name(here),
        "threads": threads,
        "precision": precision,
        "images": images,
        "batch": batch,
        **{f"{name}_images_s": round(images / took_s, 1) for name, took_s in best.items()},
        **{f"{name}_overhead": round(best[name] / plain_s - 1, 4) for name in OURS},
        "plain_tflop_s": round(done, 4),
        "product_tflop_s": round(possible, 4),
        "ratio": round(done / possible, 4),
    }


def _best(loops: dict[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of the fastest epoch of each loop, after one epoch of warm-up."""
    passes = [{name: _timed(epoch, device) for name, epoch in loops.items()} for _ in range(repeats + 1)][1:]
    return {name: min(took_s[name] for took_s in passes) for name in loops}


def _run(method: str, network: dict[str, Any], batch: int, precision: str) -> RunConfig:
    classes = [str(c) for c in range(CLASSES)]
    return parse_run(
        {
            "task": {"classes": classes, "size": SIZE, "channels": CHANNELS, **network},
            "method": {"name": method},
            "train": {"batch": batch, "precision": precision},
        }
    )


def _images(task: Task, images: int) -> ImageData:
    draw = torch.Generator().manual_seed(0)
    return ImageData(
        pixel_NCHW=torch.randint(0, 256, (images, CHANNELS, SIZE, SIZE), dtype=torch.uint8, generator=draw),
        label_N=torch.randint(0, CLASSES, (images,), generator=draw),
        label_space=task.label_space,
        mean_C11=torch.full((CHANNELS, 1, 1), 0.5),
        std_C11=torch.full((CHANNELS, 1, 1), 0.25),
    )


def _ours(run: RunConfig, images: int, device: torch.device) -> Callable[[], None]:
    """An epoch of the shipped trainer."""
    torch.manual_seed(0)
    task = discovery.get(run)
    model, data = task.build_model().to(device), _images(task, images).to(device)
    frame = draw_frame(task.label_space, run.frame.dim, seed=0)
    guide = guide_at(task, frame.etf_KD, ClassMemory.empty(frame.vertices, frame.dim), 1).to(device)
    generator = torch.Generator().manual_seed(0)

    def epoch() -> None:
        train(task, model, data, guide, run.train, 1, generator, Hooks())

    return epoch


class _Plain(nn.Module):
    def __init__(self, options: ImageOptions, dim: int) -> None:
        super().__init__()
        backbone, width = build_backbone(options)
        self.layers = nn.Sequential(backbone, nn.Linear(width, dim), nn.Linear(dim, CLASSES))

    def forward(self, pixel_BCHW: Tensor) -> Tensor:
        logit_BK: Tensor = self.layers(pixel_BCHW)
        return logit_BK


def _plain(run: RunConfig, images: int, device: torch.device, *, replayed: bool) -> tuple[int, Callable[[], None]]:
    """(arithmetic operations, an epoch) of a loop as people write it, with none of our code but the model."""
    torch.manual_seed(0)
    options = ImageOptions.model_validate(run.task.model_extra)
    model = _Plain(options, run.frame.dim).to(device)
    section, data = run.train, _images(discovery.get(run), images).to(device)
    half = section.precision == "bf16"
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=section.lr,
        momentum=section.momentum,
        weight_decay=section.weight_decay,
        fused=device.type == "cuda",
    )

    def step(rows: tuple[Tensor, ...]) -> dict[str, Tensor]:
        pixel_BCHW = (data.pixel_NCHW[rows[0]].float() / 255 - data.mean_C11) / data.std_C11
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(pixel_BCHW), data.label_N[rows[0]])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return {}

    def epoch() -> None:
        model.train()
        take = Steps(step, capture_for(device)) if replayed else step
        with beside_default_stream(device):
            for row_B in torch.randperm(images, device=device).split(section.batch):
                take((row_B,))

    with FlopCounterMode(display=False) as counter:
        step((torch.arange(min(section.batch, images), device=device),))
    return counter.get_total_flops() * images // min(section.batch, images), epoch


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _wait_for(device)
    started = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _product_tflop_s(device: torch.device, precision: str) -> float:
    side = _PRODUCT[device.type == "cuda"]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    one, other, out = (torch.randn(side, side, device=device).to(dtype) for _ in range(3))
    took_s = min(_timed(partial(torch.mm, one, other, out=out), device) for _ in range(_PRODUCT_TRIES))
    return 2 * side**3 / took_s / 1e12
