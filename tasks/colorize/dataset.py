"""The pictures of one client, and how batches are drawn from them.

Built by the task from what a reader gives; trainer and evaluation use it as `TaskData`. Must not know where
pictures come from.

Legend: N pictures, B batch, C channels, H height, W width, h and w height and width of the token grid, K regions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednc.common.tasks.api import TaskData
from fednc.common.tasks.splits import Index
from fednc.common.tasks.tensor_data import hold_out_index, run_lengths
from fednc.tasks.colorize.sources.pairs import NO_REGION, Pairs
from fednc.tasks.colorize.warp import draw_points, warped

ColourBatch = tuple[Tensor, Tensor, Tensor, Tensor]
_ARRAYS = ("line", "colour", "reference", "region", "reference_region")  # as the reader of arrays names them


@dataclass(frozen=True, kw_only=True, eq=False)
class ColourData(TaskData):
    """Line art with true colours and references.

    A batch is (line art and reference [B, 4, H, W], true colours [B, 3, H, W], regions [B, H, W], regions of the
    reference). Pictures have values of -1 to 1; colours that nobody knows are NaN; regions are int64, `NO_REGION`
    where there is none. In training, the reference is the true picture, bent; otherwise another picture.

    Attributes:
        pairs: the pictures, all with references.
        warp: how far training references are bent, as a share of the side.
        label_space: K; 0 if regions are not learnt.
        grid: height and width of the token grid, at which regions are counted.
    """

    pairs: Pairs
    warp: float = 0.25
    label_space: int = 0
    grid: tuple[int, int] = (1, 1)

    @property
    def examples(self) -> int:
        """Number of pictures."""
        return len(self.pairs.line_N1HW)

    @property
    def names(self) -> tuple[str, ...]:
        """See TaskData."""
        return self.pairs.names

    @property
    def notes(self) -> tuple[str, ...]:
        """See TaskData."""
        return self.pairs.notes

    @property
    def rows(self) -> tuple[Tensor, ...]:
        """See TaskData."""
        pairs = self.pairs
        every = (pairs.line_N1HW, pairs.colour_N3HW, pairs.reference_N3HW, pairs.region_NHW)
        return tuple(each for each in every if each is not None)

    @cached_property
    def _token_count_NK(self) -> Tensor:
        if self.pairs.region_NHW is None or not self.label_space:
            return torch.zeros(self.examples, self.label_space, dtype=torch.int64)
        token_Nhw = at_tokens(self.pairs.region_NHW.cpu(), self.grid).flatten(1)
        rows = [torch.bincount(each.long(), minlength=NO_REGION + 1)[: self.label_space] for each in token_Nhw]
        return torch.stack(rows) if rows else torch.zeros(0, self.label_space, dtype=torch.int64)

    @property
    def count_K(self) -> Tensor:
        """int64 [K]: tokens of each region."""
        return self._token_count_NK.sum(dim=0)

    @property
    def having_K(self) -> Tensor:
        """int64 [K]: pictures with a token of each region."""
        return (self._token_count_NK > 0).sum(dim=0)

    @property
    def artist_N(self) -> Index:
        """int64 [N]: number of each picture's artist."""
        if not self.pairs.artists:
            return np.zeros(self.examples, np.int64)
        return np.unique(np.array(self.pairs.artists), return_inverse=True)[1].astype(np.int64)

    # ---- batches ---------------------------------------------------------------------------------------------

    def train_batches(self, batch: int, generator: torch.Generator) -> Iterator[ColourBatch]:
        """One epoch in an order drawn from `generator` (a CPU one); each picture, bent, is its own reference."""
        order_N = torch.randperm(self.examples, generator=generator)
        height, width = self.pairs.line_N1HW.shape[2:]
        for row_B in order_N.split(run_lengths(self.examples, batch)):
            line, colour, _, region, _ = self._rows(row_B)
            points = draw_points(len(row_B), self.warp, generator)
            noise = torch.rand(len(row_B), 3, height, width, generator=generator) * 2 - 1  # one step of 255
            bent = warped((colour + noise.to(colour.device) / 127.5).clamp(-1, 1), *points)
            yield torch.cat([line, bent], dim=1), colour, region, region

    def eval_batches(self, batch: int) -> Iterator[ColourBatch]:
        """All pictures in stored order, with the references that they have."""
        for row_B in torch.arange(self.examples).split(batch) if self.examples else ():
            line, colour, reference, region, reference_region = self._rows(row_B)
            yield torch.cat([line, reference], dim=1), colour, region, reference_region

    def _rows(self, row_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        pairs = self.pairs
        row_B = row_B.to(pairs.line_N1HW.device)
        line = as_signed(pairs.line_N1HW[row_B])
        assert pairs.reference_N3HW is not None
        reference = as_signed(pairs.reference_N3HW[row_B])
        colour = reference * torch.nan if pairs.colour_N3HW is None else as_signed(pairs.colour_N3HW[row_B])
        nowhere = torch.full_like(pairs.line_N1HW[row_B][:, 0], NO_REGION)
        region, other = (
            (nowhere if value is None else value[row_B]).long()
            for value in (pairs.region_NHW, pairs.reference_region_NHW)
        )
        return line, colour, reference, region, other

    # ---- choosing --------------------------------------------------------------------------------------------

    def hold_out(self, share: float, seed: int) -> tuple[ColourData, ColourData]:
        """(training data, held-out data): each artist contributes its share."""
        rest, held = hold_out_index(self.artist_N, share, seed)
        return self.select(rest), self.select(held)

    def select(self, index: Index) -> ColourData:
        """The pictures at `index`, in that order."""
        here = self.pairs.line_N1HW.device
        return replace(self, pairs=self._moved(torch.device("cpu")).select(index)).to(here)

    def to(self, device: torch.device) -> ColourData:
        """The same pictures on `device`."""
        return replace(self, pairs=self._moved(device))

    def _moved(self, device: torch.device) -> Pairs:
        given: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self.pairs).items() if isinstance(value, Tensor)
        }
        return replace(self.pairs, **given)


def as_signed(pixel: Tensor) -> Tensor:
    """Bytes as numbers of -1 to 1."""
    return pixel.float() / 127.5 - 1


def as_unit(picture: Tensor) -> Tensor:
    """Numbers of -1 to 1 as 0 to 1."""
    return ((picture + 1) / 2).clamp(0, 1)


def at_tokens(region_BHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, h, w]: the region in the middle of each token's part of the picture."""
    height, width = region_BHW.shape[1:]
    row = ((torch.arange(grid[0]) + 0.5) * height / grid[0]).long()[:, None]
    column = ((torch.arange(grid[1]) + 0.5) * width / grid[1]).long()
    found: Tensor = region_BHW[:, row.to(region_BHW.device), column.to(region_BHW.device)]
    return found


def packed(train: ColourData, test: ColourData, classes: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Both sets as arrays that the reader of `npz:` takes."""
    arrays: dict[str, np.ndarray[Any, Any]] = {"classes": np.array(classes)} if classes else {}
    for part, data in (("train", train), ("test", test)):
        pairs = data.pairs
        tensors = (
            pairs.line_N1HW[:, 0],
            pairs.colour_N3HW,
            pairs.reference_N3HW,
            pairs.region_NHW,
            pairs.reference_region_NHW,
        )
        for name, value in zip(_ARRAYS, tensors, strict=True):
            if value is not None:
                found = value if value.ndim == 3 else value.permute(0, 2, 3, 1)
                arrays[f"{name}_{part}"] = np.ascontiguousarray(found.cpu().numpy())
        if pairs.artists:
            arrays[f"artist_{part}"] = np.array(pairs.artists)
    return arrays
