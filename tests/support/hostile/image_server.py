"""A server that wants the images: models whose features are the pixels, and how it combines the answers.

The attacks use only what every server knows: the run file, the model, the number of examples of each class. Shared
by the tests of the owner's policy.

Legend: N images, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message, RecordDict
from torch import Tensor, nn

from fednc.client.link.link import Host
from fednc.client.policy.rules import OwnerRefusalError
from fednc.common import flower_adapter
from fednc.common.config.run import RunConfig, parse_run
from fednc.common.errors import ConfigError
from fednc.common.initialise import messages
from fednc.common.initialise.messages import GRADIENT, INIT, ORDER, SCALE, Order
from fednc.common.initialise.probe import Layout
from fednc.common.learning.class_memory import ClassMemory
from fednc.common.learning.frame import draw_frame
from fednc.common.tasks import discovery
from fednc.common.wire import arrays
from fednc.common.wire import messages as exchange
from fednc.common.wire.messages import MEMORY, Instruction
from fednc.protos import federation_pb2 as pb

CLASSES = ("healthy", "ill")
SIZE, PIXELS = 8, 64
REFUSALS = (OwnerRefusalError, ConfigError)
ILL = 1  # the class that the server attacks


def write_images(path: Path, counts: tuple[int, ...] = (18, 12), seed: int = 3) -> np.ndarray[Any, Any]:
    """Write images of noise, so nothing about them can be guessed; return those of class `ILL`, or all."""
    draw = np.random.default_rng(seed)
    label_N = np.repeat(np.arange(len(counts)), counts)
    image_NHW = draw.integers(1, 256, (len(label_N), SIZE, SIZE), np.uint8)
    np.savez(path, x_train=image_NHW, y_train=label_N, classes=np.array(CLASSES))
    return image_NHW


def hostile_run(**keys: Any) -> RunConfig:
    """A run whose network of plain convolutions gets pixels in 0..1; `keys` override parts of it."""
    task = {"classes": list(CLASSES), "size": SIZE, "channels": 1, "width": 16, "model": "plain"}
    base: dict[str, Any] = {
        "task": {**task, "mean": [0.0], "std": [1.0]},
        "method": {"name": "fednc", "readout": "memory"},
        "frame": {"dim": PIXELS + 1},
        "train": {"batch": 16, "lr": 0.01, "epochs": 4},
    }
    for key, value in keys.items():
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    return parse_run(base)


def see_through(run: RunConfig) -> nn.Module:
    """A model of the run's own kind whose features are the image's pixels and a constant.

    Convolutions of stride 2 move two by two pixels into channels, the others copy their input.
    """
    torch.manual_seed(0)
    model = discovery.get(run).build_model()
    state = model.state_dict()
    with torch.no_grad():
        for key in state:
            if key.startswith(("backbone", "projection")):
                state[key].zero_()
        given = 1
        convs = [key for key in state if key.startswith("backbone") and key.endswith("weight")]
        for key, stride in zip(convs, (1, 1, 2, 1, 2, 1, 1), strict=True):
            for channel in range(given):
                for fold in range(stride**2):
                    row, column = divmod(fold, 2)
                    state[key][fold * given + channel, channel, 1 + row, 1 + column] = 1.0
            given *= stride**2
        state["projection.weight"][:PIXELS] = torch.eye(PIXELS)
        if len(state["projection.bias"]) > PIXELS:
            state["projection.bias"][PIXELS] = 1.0
    return model


def as_image(feat_D: Tensor) -> np.ndarray[Any, Any]:
    """The image in a feature of `see_through`'s backbone, whose channels hold pixels moved twice."""
    folded = feat_D[:PIXELS].reshape(2, 2, 2, 2, 2, 2)  # second move, first move, position; rows before columns
    outer_row, outer_column, inner_row, inner_column, y, x = range(6)
    image = folded.permute(y, outer_row, inner_row, x, outer_column, inner_column).reshape(SIZE, SIZE)
    pixels: np.ndarray[Any, Any] = (image * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels


def welcome(run: RunConfig, run_id: str, part: pb.Part | None = None) -> pb.Welcome:
    return pb.Welcome(node_id=7, run_id=run_id, run_json=run.model_dump_json(exclude={"server"}), part=part)


def content_of(
    run: RunConfig, server_round: int = 1, *, wants_sums: bool = False, model: nn.Module | None = None
) -> RecordDict:
    """The content of any instruction."""
    task, model = discovery.get(run), model or see_through(run)
    frame = draw_frame(task.label_space, run.frame.dim, 0, run.frame.kind)
    return exchange.instruction_content(
        Instruction(run_json=run.model_dump_json(), server_round=server_round, wants_sums=wants_sums),
        arrays.to_record({key: model.state_dict()[key] for key in task.shared_keys(model)}),
        exchange.guide_record(frame, ClassMemory.empty(frame.vertices, task.memory_dim)),
    )


def instruction(content: RecordDict, kind: str, run_id: str = "run") -> Message:
    return flower_adapter.instruction(content, run_id=run_id, dst=7, message_type=kind, group_id="1")


# ---- sums that leave one out -----------------------------------------------------------------------------------


def sums_over_seeds(client: Callable[[], Host], seeds: range, run: RunConfig) -> Iterator[tuple[Tensor, int]]:
    """(sum, count) of class `ILL` in a run with each seed, where the client answers."""
    for seed in seeds:
        reseeded, host = run.model_copy(update={"seed": seed}), client()
        try:
            host.prepare(welcome(reseeded, f"run-{seed}"))
            reply = host.work(instruction(content_of(reseeded, 0), MEMORY, f"run-{seed}"))
            sums = exchange.sums_of(reply.content)
            yield sums.sum_KD[ILL], int(sums.count_K[ILL])
        except REFUSALS:  # these tell the attacker nothing; the tests look at the audit log
            continue
        finally:
            host.leave()


def images_from_sums(found: list[tuple[Tensor, int]]) -> list[np.ndarray[Any, Any]]:
    """Each image of a class of n + 1, from the n + 1 sums of n of them: the difference to the sum of all."""
    sums: list[Tensor] = []
    for sum_D, _ in found:
        if not any(torch.allclose(sum_D, known, atol=1e-6) for known in sums):
            sums.append(sum_D)
    if len(sums) < 2:
        return []
    whole_D = torch.stack(sums).sum(dim=0) / (len(sums) - 1)
    feats = [whole_D - sum_D for sum_D in sums]
    return [as_image(feat_D / feat_D[PIXELS]) for feat_D in feats]


# ---- gradients of one example ----------------------------------------------------------------------------------


def gradient_content(run: RunConfig, iteration: int) -> RecordDict:
    content = content_of(run, 0)
    layout = layout_of(run)
    content[INIT] = arrays.to_record({SCALE: torch.ones(len(layout.scaled), dtype=torch.float64)})
    content[ORDER] = Order(iteration=iteration).to_record()
    return content


def layout_of(run: RunConfig) -> Layout:
    model = see_through(run)
    return Layout.of(model, discovery.get(run).shared_keys(model))


def image_from_gradient(run: RunConfig, unit_N: Tensor) -> np.ndarray[Any, Any]:
    """The image behind a gradient: a linear layer's weight gradient is its input times its bias gradient."""
    parameters = dict(see_through(run).named_parameters())
    names = layout_of(run).differentiated
    pieces = unit_N.double().split([parameters[name].numel() for name in names])
    found = dict(zip(names, pieces, strict=True))
    bias_D = found["projection.bias"]
    weight_DP = found["projection.weight"].reshape(len(bias_D), PIXELS)
    best = int(bias_D.abs().argmax())
    return as_image(weight_DP[best] / bias_D[best])


def images_from_gradients(answers: Iterator[RecordDict], run: RunConfig) -> list[np.ndarray[Any, Any]]:
    images: dict[bytes, np.ndarray[Any, Any]] = {}
    for content in answers:
        answer = messages.answer_in(content, layout_of(run))
        if answer is not None and answer.norm > 0:
            image = image_from_gradient(run, answer.unit_N)
            images[image.tobytes()] = image
    return list(images.values())


def gradients(host: Host, run: RunConfig, iterations: range) -> Iterator[RecordDict]:
    """The client's gradient in each iteration, where it answers."""
    for iteration in iterations:
        try:
            reply = host.work(instruction(gradient_content(run, iteration), GRADIENT))
        except REFUSALS:
            continue
        yield reply.content


def recovered(images: list[np.ndarray[Any, Any]], wanted: np.ndarray[Any, Any]) -> int:
    """How many of the wanted images an attack found, pixel for pixel."""
    found = {image.tobytes() for image in images}
    return sum(image.tobytes() in found for image in wanted)


def closest(images: list[np.ndarray[Any, Any]], wanted: np.ndarray[Any, Any]) -> float:
    """The mean error, in grey levels of 255, of the best guess at any wanted image; about 85 for pure noise."""
    errors = [np.abs(image.astype(float) - one.astype(float)).mean() for image in images for one in wanted]
    return min(errors, default=255.0)
