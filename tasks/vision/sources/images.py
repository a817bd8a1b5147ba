"""The result of every source: images, labels, and notes for users on how they were read.

Used by the readers (`arrays.py`, `files.py`, `hub.py`) and by `select.py`, which chooses among them.

Legend: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fednc.common.errors import DataError
from fednc.common.tasks.splits import Index

Purpose = Literal["train", "test"]
LISTED = 10  # most bad images to name in one error


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """The images from a source.

    Attributes:
        pixel_NCHW: uint8 in 0..255 or float32 in 0..1.
        label_N: int64 positions in the run's `classes`; -1 for an image without a label.
        names: where each image came from; empty if that is not useful.
        has_test: whether the source has a test part; if not, these are all of its images.
        notes: what was read and what was left out, one sentence each.
        owner_N: bool; the images that `only` of the data spec chooses. None: all.
        label_names: the source's own names of its integer labels, from 0; empty if its labels are names.
    """

    pixel_NCHW: Tensor
    label_N: Tensor
    names: tuple[str, ...] = ()
    has_test: bool = False
    notes: tuple[str, ...] = ()
    owner_N: Tensor | None = None
    label_names: tuple[str, ...] = ()

    def select(self, index: Index) -> Images:
        """The images at `index`, in that order."""
        row = torch.from_numpy(index)
        names = tuple(self.names[i] for i in index) if self.names else ()
        owner_N = None if self.owner_N is None else self.owner_N[row]
        return replace(
            self, pixel_NCHW=self.pixel_NCHW[row], label_N=self.label_N[row], names=names, owner_N=owner_N
        )

    def of_owner(self) -> Images:
        """The images that `only` of the data spec chooses.

        They are chosen after the division into training and test data: this must be the same for a server that
        reads the whole file and a client that reads its own part.
        """
        return self if self.owner_N is None else self.select(self.owner_N.nonzero().flatten().numpy())


def several(errors: Sequence[DataError], total: int, source: str) -> DataError:
    """One error for all unusable images, so that the first one does not hide the others."""
    if len(errors) == 1:
        return errors[0]
    more = len(errors) - LISTED
    lines = [f"{source}: {len(errors)} of {total} images cannot be used:", *map(str, errors[:LISTED])]
    return DataError("\n  ".join([*lines, *([f"... and {more} more"] if more > 0 else [])]))
