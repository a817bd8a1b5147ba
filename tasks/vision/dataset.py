"""The images of one client, kept on its device, and how batches are drawn from them.

Built by the task from the result of `tasks/vision/sources/select.py`; trainer and evaluation use it as `TaskData`.
Must not know where images come from.

Legend: N images, B batch, C channels, H height, W width, K label space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fednc.common.tasks.api import TaskData
from fednc.common.tasks.splits import Index
from fednc.common.tasks.tensor_data import class_index, count_of, few_index, hold_out_index, run_lengths
from fednc.tasks.vision.augmentations import Augmentation, apply, draw

ImageBatch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData(TaskData):
    """Images with labels.

    Stored as read (one byte per value if the source has bytes) and normalised batch by batch. So CIFAR-10 takes
    150 MB instead of 600, and drawing batches takes less than 2 % of the time.

    Attributes:
        pixel_NCHW: uint8 in 0..255 or float32 in 0..1.
        label_N: int64; `UNLABELLED` for an image without a label.
        label_space: K.
        mean_C11: per channel, subtracted from pixels in 0..1.
        std_C11: per channel, divides the result.
        augment: whether training batches are cropped and mirrored.
        augmentations: further changes of training batches, in order.
        names: where each image came from (for `fednc predict`); may be empty.
        notes: what was read and what was left out, to show to users.
        label_names: the data's own names of its integer labels, from 0; empty if its labels are names.
    """

    pixel_NCHW: Tensor
    label_N: Tensor
    label_space: int
    mean_C11: Tensor
    std_C11: Tensor
    augment: bool = False
    augmentations: tuple[Augmentation, ...] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """See TaskData."""
        return self.pixel_NCHW, self.label_N

    @property
    def label_map(self) -> Mapping[str, str]:
        """See TaskData."""
        return {str(number): name for number, name in enumerate(self.label_names)}

    @property
    def examples(self) -> int:
        """Number of images."""
        return len(self.label_N)

    @property
    def count_K(self) -> Tensor:
        """int64 [K]: images of each class, on the CPU."""
        return count_of(self.label_N, self.label_space)

    def train_batches(self, batch: int, generator: torch.Generator) -> Iterator[ImageBatch]:
        """One epoch in an order drawn from `generator` (a CPU one), augmented if the run says so.

        All random numbers are drawn before the first batch and copied to the device at once. A copy per batch
        would make the device wait for the CPU at every step.
        """
        order_N = torch.randperm(self.examples, generator=generator)
        runs, height, device = run_lengths(self.examples, batch), self.pixel_NCHW.shape[2], self.label_N.device
        drawn = [draw_moves(length, height, generator) for length in runs if self.augment]
        moves = torch.cat(drawn, dim=1).to(device).split(runs, dim=1) if drawn else ()
        drawn_PN = draw(self.augmentations, self.examples, generator) if self.augmentations else torch.empty(0, 0)
        changes = drawn_PN.to(device).split(runs, dim=1) if self.augmentations else ()
        for i, row_B in enumerate(order_N.to(device).split(runs)):
            pixel_BCHW = self.pixel_NCHW[row_B]
            if moves:
                pixel_BCHW = crop_and_mirror(pixel_BCHW, moves[i])
            if changes:
                pixel_BCHW = apply(self.augmentations, as_unit_range(pixel_BCHW), changes[i])
            yield self._normalised(pixel_BCHW), self.label_N[row_B]

    def eval_batches(self, batch: int) -> Iterator[ImageBatch]:
        """All images in stored order, not augmented."""
        for start in range(0, self.examples, batch):
            rows = slice(start, start + batch)
            yield self._normalised(self.pixel_NCHW[rows]), self.label_N[rows]

    def hold_out(self, share: float, seed: int) -> tuple[ImageData, ImageData]:
        """(training data, held-out data): `hold_out_index` of the labels."""
        rest, held = hold_out_index(self.label_N.cpu().numpy(), share, seed)
        return self.select(rest), self.select(held)

    def of_classes(self, first: int, end: int) -> ImageData:
        """See TaskData."""
        return self.select(class_index(self.label_N, first, end))

    def few(self, shots: int, seed: int) -> ImageData:
        """See TaskData."""
        return self.select(few_index(self.label_N, shots, seed))

    def select(self, index: Index) -> ImageData:
        """The images at `index`, in that order."""
        row_B = torch.from_numpy(index).to(self.label_N.device)
        names = tuple(self.names[i] for i in index) if self.names else ()
        return replace(self, pixel_NCHW=self.pixel_NCHW[row_B], label_N=self.label_N[row_B], names=names)

    def to(self, device: torch.device) -> ImageData:
        """The same images on `device`."""
        return replace(
            self,
            pixel_NCHW=self.pixel_NCHW.to(device),
            label_N=self.label_N.to(device),
            mean_C11=self.mean_C11.to(device),
            std_C11=self.std_C11.to(device),
        )

    def _normalised(self, pixel_BCHW: Tensor) -> Tensor:
        return (as_unit_range(pixel_BCHW) - self.mean_C11) / self.std_C11


def as_unit_range(pixel_NCHW: Tensor) -> Tensor:
    """float32 pixels in 0..1, from bytes or from floats that are already in that range."""
    return pixel_NCHW.float() / 255 if pixel_NCHW.dtype == torch.uint8 else pixel_NCHW


def draw_moves(batch: int, height: int, generator: torch.Generator) -> Tensor:
    """int64 [3, B] for `crop_and_mirror`: down, right, mirrored. Drawn on the CPU, the same for all devices.

    Each image moves by up to an eighth of its size and is mirrored with probability 1/2.
    """
    offset_2B = torch.randint(0, 2 * _margin(height) + 1, (2, batch), generator=generator)
    mirror_B = torch.rand(batch, generator=generator) < 0.5
    return torch.cat([offset_2B, mirror_B[None]])


def crop_and_mirror(pixel_BCHW: Tensor, move_3B: Tensor) -> Tensor:
    """Move each image (filling with black) and mirror it left to right, as in `move_3B`; one gather per batch."""
    batch, _, height, width = pixel_BCHW.shape
    pad, device = _margin(height), pixel_BCHW.device
    down_B1, right_B1, mirror_B1 = move_3B.unsqueeze(2)
    step_W = torch.arange(width, device=device)
    row_BH = down_B1 + torch.arange(height, device=device)
    column_BW = right_B1 + torch.where(mirror_B1.bool(), step_W.flip(0), step_W)
    padded_BHWC = F.pad(pixel_BCHW, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    image_B11 = torch.arange(batch, device=device)[:, None, None]
    return padded_BHWC[image_B11, row_BH[:, :, None], column_BW[:, None, :]].permute(0, 3, 1, 2)


def _margin(height: int) -> int:
    return max(1, height // 8)
