"""The clouds of one client, kept on its device, and how batches are turned.

Built by the task; trainer and evaluation use it as `TaskData`.

Legend: N clouds, P points, B batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fednc.common.tasks.tensor_data import LabelledTensors, run_lengths
from fednc.tasks.pointcloud import rotations
from fednc.tasks.pointcloud.options import Rotation


@dataclass(frozen=True, kw_only=True, eq=False)
class CloudData(LabelledTensors):
    """Clouds with labels. `tensors` are points [N, P, 3], two rotations of each cloud [N, 3, 3], and labels [N].

    Evaluation turns each cloud by its first rotation, and yields the second, a random one, to evaluate it again.

    Attributes:
        rotation: how training batches are turned.
        jitter: standard deviation of the noise on training points.
        tilt_33: how the client's clouds lean, after all other rotations.
    """

    rotation: Rotation = "none"
    jitter: float = 0.0
    tilt_33: Tensor = field(default_factory=lambda: torch.eye(3))

    @property
    def point_NP3(self) -> Tensor:
        """The clouds as read: centred, with radius 1."""
        return self.tensors[0]

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """See TaskData; without the rotations, which are the run's."""
        return self.point_NP3, self.label_N

    def train_batches(self, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """One epoch of (points [B, P, 3], labels [B]), each cloud turned at random."""
        device = self.point_NP3.device
        order_N = torch.randperm(self.examples, generator=generator)
        turn_N33 = rotations.draw(self.rotation, self.examples, generator)
        for row_B, turn_B33 in zip(
            *(x.split(run_lengths(self.examples, batch)) for x in (order_N, turn_N33)), strict=True
        ):
            point_BP3 = self.point_NP3[row_B.to(device)]
            if self.jitter:
                point_BP3 = point_BP3 + self.jitter * torch.randn(point_BP3.shape, generator=generator).to(device)
            turned_BP3 = rotations.turned(point_BP3, self.tilt_33.to(device) @ turn_B33.to(device))
            yield turned_BP3, self.label_N[row_B.to(device)]

    def eval_batches(self, batch: int) -> Iterator[tuple[Tensor, ...]]:
        """(points [B, P, 3], labels [B], rotations [B, 3, 3] to evaluate again with), in stored order."""
        for point_BP3, spin_B33, again_B33, label_B in super().eval_batches(batch):
            yield rotations.turned(point_BP3, self.tilt_33.to(spin_B33) @ spin_B33), label_B, again_B33
