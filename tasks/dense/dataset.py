"""The pictures of one client with their maps, and how batches are drawn from them.

Built by dense tasks from what a reader gives; trainer and evaluation use it as `TaskData`. An example is a
picture, the members of a class are pixels. Must not know where pictures come from.

Legend: N pictures, B batch, C channels, H height, W width, K label space, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fednc.common.tasks.api import TaskData
from fednc.common.tasks.splits import Index
from fednc.common.tasks.tensor_data import hold_out_index, run_lengths
from fednc.tasks.dense.maps import LABEL, MAPS, VOID, known
from fednc.tasks.dense.moves import Moves, draw_moves, moved
from fednc.tasks.dense.sources.pictures import Array
from fednc.tasks.dense.sources.pixels import nearest_pixels

DenseBatch = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseData(TaskData):
    """Pictures of one size with maps. A batch is (normalised pictures, one tensor for each of `wanted`).

    Attributes:
        pixel_NCHW: uint8.
        maps: by kind (`maps.MAPS`), as stored.
        wanted: the kinds in a batch, in order.
        label_space: K.
        mean_C11: per channel, subtracted from pixels in 0..1.
        std_C11: per channel, divides the result.
        memory_pixels: about how many labelled pixels of a picture sums of features are made of; see `sampled`.
        crop: size of training crops; None: whole pictures.
        flip: whether training pictures are mirrored at random.
        sites: for each picture the place it comes from; may be empty.
        names: for each picture where it came from; may be empty.
        whole: for each picture, reads it at its own size, uint8 [H, W, 3], to show predictions; may be empty.
        notes: what was read and what was left out, to show to users.
    """

    pixel_NCHW: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    wanted: tuple[str, ...] = (LABEL,)
    label_space: int = 0
    mean_C11: Tensor
    std_C11: Tensor
    memory_pixels: int = 1 << 30
    crop: tuple[int, int] | None = None
    flip: bool = False
    sites: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    whole: tuple[Callable[[], Array], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """Number of pictures."""
        return len(self.pixel_NCHW)

    # ---- classes ---------------------------------------------------------------------------------------------

    @cached_property
    def pixel_count_NK(self) -> Tensor:
        """int64 [N, K], on the CPU: pixels of each class in each picture; shape [N, 0] without labels."""
        if LABEL not in self.maps or not self.examples:
            return torch.zeros(self.examples, self.label_space, dtype=torch.int64)
        rows = [torch.bincount(label_HW.flatten(), minlength=VOID + 1) for label_HW in self.maps[LABEL]]
        return torch.stack(rows)[:, : self.label_space].cpu()

    @cached_property
    def _sampled_K(self) -> Tensor:
        stride_N = _stride(self.pixel_count_NK.sum(dim=1), self.memory_pixels)
        return _ceil_divided(self.pixel_count_NK, stride_N[:, None]).sum(dim=0)

    @property
    def count_K(self) -> Tensor:
        """int64 [K]: pixels of each class that sums of features are made of (`sampled`)."""
        return self._sampled_K

    @property
    def having_K(self) -> Tensor:
        """int64 [K]: pictures with at least one pixel of each class."""
        return (self.pixel_count_NK > 0).sum(dim=0)

    @property
    def counts(self) -> dict[str, Tensor]:
        """Pixels and pictures of each class; for several sites also those of each."""
        found = {"pixels": self.pixel_count_NK.sum(dim=0), "pictures": self.having_K}
        places = sorted(set(self.sites))
        for place in places if len(places) > 1 else ():
            here_N = torch.tensor([site == place for site in self.sites])
            found[f"pixels, {place}"] = self.pixel_count_NK[here_N].sum(dim=0)
            found[f"pictures, {place}"] = (self.pixel_count_NK[here_N] > 0).sum(dim=0)
        return found

    @property
    def rarest_N(self) -> Index:
        """int64 [N]: of the classes of each picture the one that fewest pictures have; 0 without labels.

        Simulated splits and held-out shares are stratified by it.
        """
        if not self.pixel_count_NK.numel():
            return torch.zeros(self.examples, dtype=torch.int64).numpy()
        having_K = self.having_K.masked_fill(self.having_K == 0, self.examples + 1)
        rank_NK = torch.where(self.pixel_count_NK > 0, having_K, self.examples + 2)
        return rank_NK.argmin(dim=1).numpy()

    def having(self, kind: str) -> int:
        """Number of pictures with a pixel of which this map says something."""
        if kind not in self.maps:
            return 0
        return int(known(kind, self.maps[kind]).flatten(1).any(dim=1).sum())

    def without(self, kinds: Collection[str]) -> DenseData:
        """The same pictures without these maps."""
        return replace(self, maps={kind: value for kind, value in self.maps.items() if kind not in kinds})

    # ---- batches ---------------------------------------------------------------------------------------------

    def train_batches(self, batch: int, generator: torch.Generator) -> Iterator[DenseBatch]:
        """One epoch in an order drawn from `generator` (a CPU one), with crops and flips if there are any."""
        order_N = torch.randperm(self.examples, generator=generator)
        given = (self.pixel_NCHW.shape[2], self.pixel_NCHW.shape[3])
        for row_B in order_N.split(run_lengths(self.examples, batch)):
            if self.crop is None and not self.flip:
                yield self._batch(row_B, None)
            else:
                moves = draw_moves(len(row_B), given, self.crop or given, generator, flip=self.flip)
                yield self._batch(row_B, moves)

    def eval_batches(self, batch: int) -> Iterator[DenseBatch]:
        """All pictures in stored order, whole."""
        for row_B in torch.arange(self.examples).split(batch) if self.examples else ():
            yield self._batch(row_B, None)

    def display_batches(self, batch: int) -> Iterator[DenseBatch]:
        """Each picture alone and at its own size, with its maps at that size; else as `eval_batches`."""
        if not self.whole:
            yield from self.eval_batches(batch)
            return
        for row, read in enumerate(self.whole):
            pixel_HW3 = read()
            own = (pixel_HW3.shape[0], pixel_HW3.shape[1])
            maps = self._batch(torch.tensor([row]), None)[1:]
            pixel_1CHW = torch.from_numpy(pixel_HW3.transpose(2, 0, 1).copy())[None].to(self.pixel_NCHW.device)
            pixel_1CHW = normalised(pixel_1CHW, self.mean_C11, self.std_C11)
            yield (pixel_1CHW, *(nearest_pixels(value, own) for value in maps))

    def _batch(self, row_B: Tensor, moves: Moves | None) -> DenseBatch:
        row_B = row_B.to(self.pixel_NCHW.device)
        pixel_BCHW = self.pixel_NCHW[row_B]
        found = {kind: self._map(kind, row_B) for kind in self.wanted}
        if moves is not None:
            pixel_BCHW = moved(pixel_BCHW, moves)
            found = {kind: moved(value, moves, kind) for kind, value in found.items()}
        pixel_BCHW = normalised(pixel_BCHW, self.mean_C11, self.std_C11)
        return (pixel_BCHW, *(value.to(MAPS[kind].batch_dtype) for kind, value in found.items()))

    def _map(self, kind: str, row_B: Tensor) -> Tensor:
        if kind in self.maps:
            return self.maps[kind][row_B]
        if MAPS[kind].unknown is None:
            raise KeyError(f"these pictures have no map {kind!r}")
        return unknown_map(kind, (len(row_B), *self.pixel_NCHW.shape[2:]), self.pixel_NCHW.device)

    # ---- choosing --------------------------------------------------------------------------------------------

    def hold_out(self, share: float, seed: int) -> tuple[DenseData, DenseData]:
        """(training data, held-out data): `hold_out_index` of `rarest_N`."""
        rest, held = hold_out_index(self.rarest_N, share, seed)
        return self.select(rest), self.select(held)

    def select(self, index: Index) -> DenseData:
        """The pictures at `index`, in that order."""
        row_B = torch.from_numpy(index).to(self.pixel_NCHW.device)
        return replace(
            self,
            pixel_NCHW=self.pixel_NCHW[row_B],
            maps={kind: value[row_B] for kind, value in self.maps.items()},
            sites=tuple(self.sites[i] for i in index) if self.sites else (),
            names=tuple(self.names[i] for i in index) if self.names else (),
            whole=tuple(self.whole[i] for i in index) if self.whole else (),
        )

    def with_notes(self, notes: tuple[str, ...]) -> DenseData:
        """The same pictures with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def to(self, device: torch.device) -> DenseData:
        """The same pictures on `device`."""
        return replace(
            self,
            pixel_NCHW=self.pixel_NCHW.to(device),
            maps={kind: value.to(device) for kind, value in self.maps.items()},
            mean_C11=self.mean_C11.to(device),
            std_C11=self.std_C11.to(device),
        )


def normalised(pixel_BCHW: Tensor, mean_C11: Tensor, std_C11: Tensor) -> Tensor:
    """Pictures of bytes as a model gets them."""
    return (pixel_BCHW.float() / 255 - mean_C11) / std_C11


def unknown_map(kind: str, size: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """A map [N, H, W] or [N, channels, H, W] of which no pixel is known, as it is stored. `size`: (N, H, W)."""
    form = MAPS[kind]
    assert form.unknown is not None
    shape = (size[0], form.channels, *size[1:]) if form.channels else size
    return torch.full(shape, form.unknown, dtype=form.dtype, device=device)


def sampled(label_BHW: Tensor, label_space: int, memory_pixels: int) -> Tensor:
    """int64 [P]: positions in the flattened labels of the pixels that sums of features are made of.

    Of each class of a picture every s-th pixel, row by row and from the first one on, where s is the number of the
    picture's labelled pixels over `memory_pixels`, rounded up. So every class of a picture has at least one pixel,
    classes keep their shares, and nothing depends on the batch or on other pictures.
    """
    found, per_picture = [], label_BHW[0].numel() if len(label_BHW) else 0
    for number, label_HW in enumerate(label_BHW):
        label_P = label_HW.flatten()
        place_P = (label_P < label_space).nonzero().flatten()
        stride = -(-len(place_P) // memory_pixels)
        if stride > 1:
            known_P = label_P[place_P]
            order_P = torch.argsort(known_P, stable=True)
            count_K = torch.bincount(known_P, minlength=label_space)
            first_K = count_K.cumsum(dim=0) - count_K
            rank_P = torch.arange(len(order_P), device=order_P.device) - first_K[known_P[order_P]]
            place_P = place_P[order_P[rank_P % stride == 0].sort().values]
        found.append(place_P + number * per_picture)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=label_BHW.device)


def most_members(memory_pixels: int, label_space: int, pixels: int) -> int:
    """The most pixels of one picture that `sampled` chooses."""
    return min(memory_pixels + label_space, pixels)


def _stride(labelled_N: Tensor, memory_pixels: int) -> Tensor:
    return _ceil_divided(labelled_N, torch.tensor(memory_pixels)).clamp(min=1)


def _ceil_divided(value: Tensor, by: Tensor) -> Tensor:
    return -(-value // by)
