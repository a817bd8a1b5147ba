"""The model: a backbone, for each task a deformable mixer, the interaction of all tasks, for each task a head.

After DeMT (AAAI 2023, arXiv 2301.03461). Built by the task. All parts of one task have its name in their keys, so
they can be averaged over the clients that have its labels. Must not know data or losses.

Legend: B batch, C channels, H height, W width, T tasks, N places, D feature width, E width before the projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fednc.common.tasks.classifier import ClassifierModel
from fednc.tasks.dense.maps import NORMALS
from fednc.tasks.dense.models import enlarged
from fednc.tasks.multitask.backbones import joined
from fednc.tasks.multitask.deformable import MixerBlock, normalisation
from fednc.tasks.multitask.interaction import OFF, Interaction, Query, Sequences
from fednc.tasks.multitask.kinds import SEGMENTATION

OF_TASK = ("mixers", "queries", "necks", "outs", "trained")  # parts of the model with a module for each task


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large the model is, and how its tasks look at each other.

    Attributes:
        channels: by task, of its prediction; segmentation's come from projection and head instead.
        private: tasks that the others do not see.
        neck: E, channels between a task's tokens and its prediction.
    """

    channels: Mapping[str, int]
    private: frozenset[str]
    given: int
    width: int
    neck: int
    depth: int
    heads: int
    norm: str
    interaction: str


class MultitaskModel(ClassifierModel):
    """Pictures in, a map of each task out. Without segmentation, projection and head are empty."""

    def __init__(
        self, backbone: nn.Module, shape: Shape, projection: nn.Module, head: nn.Module, weight_K: Tensor | None
    ) -> None:
        super().__init__(backbone, projection, head, weight_K)  # type: ignore[arg-type]
        self.tasks, self.private = tuple(shape.channels), shape.private
        self.mode, wide = shape.interaction, shape.width
        self.joint = nn.Linear(shape.given, wide)
        self.joint_norm = nn.LayerNorm(wide)
        self.mixers = nn.ModuleDict({name: _mixer(shape) for name in self.tasks})
        attends = self.mode != OFF
        self.interaction = Interaction(wide, shape.heads) if attends else None
        queries = {name: Query(wide, shape.heads) for name in self.tasks} if attends else {}
        self.queries = nn.ModuleDict(queries)
        self.necks = nn.ModuleDict({name: _neck(wide, shape.neck, shape.norm) for name in self.tasks})
        outs = {name: _out(shape.neck, each) for name, each in shape.channels.items() if name != SEGMENTATION}
        if NORMALS in outs:
            _towards_the_camera(outs[NORMALS])
        self.outs = nn.ModuleDict(outs)
        self.trained = nn.ModuleDict({name: Mark() for name in self.tasks if name in self.private})

    def mixed(self, pixel_BCHW: Tensor) -> Tensor:
        """[B, T, C, H, W]: the features of each task, before tasks look at each other."""
        found_BCHW = joined(self.backbone(pixel_BCHW))
        joint_BCHW = self.joint_norm(self.joint(found_BCHW.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return torch.stack([self.mixers[name](joint_BCHW) for name in self.tasks], dim=1)

    def interacted(self, mixed_BTCHW: Tensor, wanted: Sequence[str]) -> list[Tensor]:
        """For each of the wanted tasks its features [B, C, H, W] after it has looked at the others."""
        rows = [self.tasks.index(name) for name in wanted]
        if self.interaction is None:
            return [mixed_BTCHW[:, row] for row in rows]
        size = mixed_BTCHW.shape[3:]
        token_BTNC, sequences = mixed_BTCHW.flatten(3).transpose(2, 3), self.sequences(mixed_BTCHW.device)
        joint_BTNC = self.interaction(token_BTNC, sequences)
        found = [self.queries[self.tasks[row]](token_BTNC, joint_BTNC, row, sequences) for row in rows]
        return [each.transpose(1, 2).unflatten(2, size) for each in found]

    def attention(self, pixel_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Two float [T, T]: the share of its attention that each task gives to each: interaction, queries.

        Means over pictures, places and heads; rows add up to 1.
        """
        assert self.interaction is not None
        token_BTNC = self.mixed(pixel_BCHW).flatten(3).transpose(2, 3)
        sequences, tasks, places = self.sequences(pixel_BCHW.device), len(self.tasks), token_BTNC.shape[2]
        each, joint_BTNC = sequences.of(token_BTNC), self.interaction(token_BTNC, sequences)
        among = self.interaction.attend.weights(each, each, sequences.allowed(places))
        asked = [
            sequences.by_task(
                self.queries[task].attend.weights(  # type: ignore[operator, union-attr]
                    sequences.of(token_BTNC[:, row : row + 1]),
                    sequences.of(joint_BTNC),
                    sequences.allowed(places, row),
                ),
                tasks,
            )
            for row, task in enumerate(self.tasks)
        ]
        return sequences.by_task(among, tasks).cpu(), torch.cat(asked).cpu()

    def sequences(self, device: torch.device) -> Sequences:
        """How tokens see each other: every task sees itself and all that are not private."""
        return Sequences(self.mode, [name in self.private for name in self.tasks], device)

    def maps(self, pixel_BCHW: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Predictions [B, channels, H, W] of the wanted tasks; of segmentation, features [B, D, H, W]."""
        found = self.interacted(self.mixed(pixel_BCHW), wanted)
        size = pixel_BCHW.shape[2:]
        return {
            name: enlarged(self._predicted(name, self.necks[name](each)), size)
            for name, each in zip(wanted, found, strict=True)
        }

    def _predicted(self, name: str, deep_BEHW: Tensor) -> Tensor:
        if name != SEGMENTATION:
            found: Tensor = self.outs[name](deep_BEHW)
            return found
        feat_BHWD: Tensor = self.projection(deep_BEHW.permute(0, 2, 3, 1))
        return feat_BHWD.permute(0, 3, 1, 2)

    def features(self, inputs: Tensor) -> Tensor:
        """Features [B, H, W, D] of every pixel for the classes, not normalised."""
        return self.maps(inputs, (SEGMENTATION,))[SEGMENTATION].permute(0, 2, 3, 1)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """All maps."""
        return self.maps(inputs, self.tasks)


class Mark(nn.Module):
    """Says whether a private task has been trained here: elsewhere its layers are as they were drawn."""

    done: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("done", torch.tensor(False))


def task_of(key: str, keys: Sequence[str] = OF_TASK) -> str:
    """The task that a key of the state dict belongs to; "" for what all tasks share."""
    first, _, rest = key.partition(".")
    if first in ("projection", "head"):
        return SEGMENTATION
    return rest.partition(".")[0] if first in keys else ""


def _mixer(shape: Shape) -> nn.Sequential:
    return nn.Sequential(*(MixerBlock(shape.width, shape.norm) for _ in range(shape.depth)))


def _neck(given: int, width: int, norm: str) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, width, 3, padding=1, bias=False), normalisation(norm, width), nn.ReLU())


def _out(given: int, channels: int) -> nn.Conv2d:
    out = nn.Conv2d(given, channels, 1)
    nn.init.normal_(out.weight, std=0.01)
    nn.init.zeros_(out.bias)  # type: ignore[arg-type]
    return out


def _towards_the_camera(out: nn.Conv2d) -> nn.Conv2d:
    """Normals begin as a direction: the gradient of the unit vector of a tiny one would be huge."""
    with torch.no_grad():
        out.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))  # type: ignore[union-attr]
    return out
