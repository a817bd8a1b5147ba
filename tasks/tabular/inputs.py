"""The first layer of every model for tables, and the sums of the data that fill it before round 1.

A row arrives as float64: numbers as they are, booleans as 0 and 1, categories as codes, NaN where a value is
missing. `TableInputs` turns it into the inputs of the network with means, deviations and categories that are
those of all sites together. They are buffers that `aggregation` makes FIXED: they travel with the model, so
clients that join later, `fednc predict` and exports use the same ones.

Legend: B batch, C categorical columns, F numeric and boolean columns, M categories that are told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fednc.common.tasks.metrics import Stats, refuse_unless
from fednc.common.tasks.moments import Moments
from fednc.tasks.tabular.options import TabularOptions

FIXED_KEYS = frozenset({"mean", "deviation", "may_miss", "kept", "seen"})
_EMPTY = -1  # in `kept`: no category
_OTHER, _MISSING = 0, 1  # places in `seen`, and after the buckets of a count
_SLACK = 1e-6  # rounding of sums


class Numbers(nn.Module):
    """Clips and standardises numbers; a missing one becomes the mean, with a second input that says so.

    That second input is 0 for a column in which no site lacked a value: its weights were never trained.
    """

    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor
    may_miss: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        """The bounds of each column, infinite where it has none. Until sums are known, they are the scale."""
        super().__init__()
        low_F, high_F = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
        bounded_F = (high_F - low_F).isfinite()
        middle_F = torch.where(bounded_F, (low_F + high_F) / 2, 0.0)
        uniform_F = torch.where(bounded_F, (high_F - low_F) / math.sqrt(12), 1.0)
        self.register_buffer("mean", middle_F)
        self.register_buffer("deviation", uniform_F)
        self.register_buffer("may_miss", torch.ones(len(low_F)))
        self.register_buffer("low", low_F, persistent=False)  # in the run file, so they need not travel
        self.register_buffer("high", high_F, persistent=False)

    @property
    def width(self) -> int:
        """Inputs of the network."""
        return 2 * len(self.mean)

    def forward(self, row_BF: Tensor) -> Tensor:
        """float32 [B, 2 F] of float64 [B, F]."""
        absent_BF = row_BF.isnan()
        clipped_BF = torch.where(absent_BF, self.mean, row_BF).clamp(self.low, self.high)
        scaled_BF = (clipped_BF - self.mean) / self.deviation
        return torch.cat([scaled_BF.float(), absent_BF.float() * self.may_miss], dim=1)


class Categories(nn.Module):
    """One categorical column: one input per kept category, one for others, one for missing values.

    Attributes:
        kept: int64 [M]: codes of the categories that are told apart; `_EMPTY` for a free place.
        seen: [2]: whether training data had other categories, and missing values; an input is 0 if not.
    """

    kept: Tensor
    seen: Tensor

    def __init__(self, codes: int, places: int, embedding: int) -> None:
        """`codes`: number of listed categories; 0 if there is no list."""
        super().__init__()
        kept_M = torch.arange(codes) if codes else torch.full((places,), _EMPTY)
        self.register_buffer("kept", kept_M)
        self.register_buffer("seen", torch.ones(2))
        one_hot = len(kept_M) + 2
        self.vector = nn.Linear(one_hot, embedding, bias=False) if embedding else None
        self.width = embedding or one_hot

    def forward(self, code_B: Tensor) -> Tensor:
        """float32 [B, width] of float64 codes."""
        same_BM = code_B[:, None] == self.kept.double()
        absent_B = code_B.isnan()
        other_B = ~(absent_B | same_BM.any(dim=1))
        rest_B2 = torch.stack([other_B, absent_B], dim=1).float() * self.seen
        one_hot = torch.cat([same_BM.float(), rest_B2], dim=1)
        return one_hot if self.vector is None else self.vector(one_hot)


class TableInputs(nn.Module):
    """The inputs of the network from rows: all numbers, then the categorical columns in order."""

    def __init__(self, options: TabularOptions) -> None:
        super().__init__()
        bounds = [_bounds_of(options, name) for name in options.numbers]
        self.numbers = Numbers([low for low, _ in bounds], [high for _, high in bounds])
        columns = [
            Categories(len(listed), options.most_categories, options.embedding)
            for listed in options.categorical.values()
        ]
        self.categories = nn.ModuleList(columns)
        self.width = self.numbers.width + sum(column.width for column in columns)

    def forward(self, row_BX: Tensor) -> Tensor:
        """float32 [B, width] of float64 [B, F + C]."""
        plain = len(self.numbers.mean)
        parts = [self.numbers(row_BX[:, :plain])]
        parts += [column(row_BX[:, plain + place]) for place, column in enumerate(self.categories)]
        return torch.cat(parts, dim=1)


def _bounds_of(options: TabularOptions, name: str) -> tuple[float, float]:
    return options.bounds.get(name, (-math.inf, math.inf))


@dataclass(frozen=True)
class Bounded:
    """Sums of columns of numbers, of which some have bounds, shifted to the middle of these.

    The shift keeps digits: a variance is a difference of two means.

    Attributes:
        name: prefix of the sums' names.
        low, high: bounds of each column, infinite where it has none.
    """

    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, options: TabularOptions, columns: Sequence[str], name: str) -> Bounded:
        """With the bounds of the run file."""
        low, high = zip(*(_bounds_of(options, column) for column in columns), strict=True) if columns else ((), ())
        return cls(name, low, high)

    @property
    def _moments(self) -> Moments:
        return Moments(len(self.low))

    @property
    def _half_F(self) -> Tensor:
        """Half the distance of the bounds; infinite without bounds."""
        return torch.tensor([(high - low) / 2 for low, high in self._pairs], dtype=torch.float64)

    @property
    def _middle_F(self) -> Tensor:
        middle = [(low + high) / 2 if math.isfinite(high - low) else 0.0 for low, high in self._pairs]
        return torch.tensor(middle, dtype=torch.float64)

    @property
    def _pairs(self) -> list[tuple[float, float]]:
        return list(zip(self.low, self.high, strict=True))

    def zeros(self) -> Stats:
        """Sums over no rows."""
        return self._named(self._moments.zeros())

    def sums(self, value_NF: Tensor, least: int) -> Stats:
        """Sums over rows; a column with fewer than `least` values is left out."""
        low_F, high_F = (torch.tensor(side, dtype=torch.float64) for side in (self.low, self.high))
        clipped_NF = value_NF.cpu().double().clamp(low_F, high_F)  # NaN stays NaN
        return self._named(self._moments.sums(clipped_NF - self._middle_F, least))

    def check(self, sums: Stats, announced: int) -> None:
        """Raises ProtocolError: that many rows within the bounds cannot have these sums."""
        mine = self._mine(sums)
        self._moments.check(mine, announced)
        count_F = mine["count"].double()
        half_F = self._half_F
        bounded_F = half_F.isfinite()
        most_F = (count_F * half_F)[bounded_F] * (1 + _SLACK)
        refuse_unless(bool((mine["sum"].abs()[bounded_F] <= most_F).all()), "a sum is beyond the declared bounds")
        squares_F = most_F * half_F[bounded_F]
        refuse_unless(
            bool((mine["square"][bounded_F] <= squares_F).all()), "a sum of squares is beyond the declared bounds"
        )

    def mean_and_deviation(self, sums: Stats) -> tuple[Tensor, Tensor, Tensor]:
        """float64 [F] each: mean, deviation, and whether any site sent values."""
        mine = self._mine(sums)
        mean_F, deviation_F = self._moments.mean_and_deviation(mine)
        return mean_F + self._middle_F, deviation_F, mine["count"] > 0

    def _named(self, sums: Stats) -> Stats:
        return {f"{self.name}_{key}": value for key, value in sums.items()}

    def _mine(self, sums: Stats) -> Stats:
        return {key: sums[f"{self.name}_{key}"] for key in self._moments.zeros()}


@dataclass(frozen=True)
class TableSums:
    """The sums of the input columns: `Task.data_sums` and its companions, for tables."""

    options: TabularOptions

    @property
    def _numbers(self) -> Bounded:
        return Bounded.of(self.options, self.options.numbers, "number")

    @property
    def _sizes(self) -> dict[str, int]:
        """Codes of each categorical column, by the name of its sum."""
        sizes = [len(listed) or self.options.buckets for listed in self.options.categorical.values()]
        return {f"category_{place}": size for place, size in enumerate(sizes)}

    def zeros(self) -> Stats:
        """See Task.no_data_sums."""
        counts = {name: torch.zeros(size + 2, dtype=torch.int64) for name, size in self._sizes.items()}
        missing_F = torch.zeros(len(self.options.numbers), dtype=torch.int64)
        return {**self._numbers.zeros(), "number_missing": missing_F, **counts}

    def sums(self, row_NX: Tensor, least: int) -> Stats:
        """See Task.data_sums. Every count below `least` stays here: it is sent as 0."""
        row_NX = row_NX.cpu()
        number_NF = row_NX[:, : len(self.options.numbers)]
        missing_F = number_NF.isnan().sum(dim=0)
        found = self._numbers.sums(number_NF, least)
        found["number_missing"] = torch.where(missing_F >= least, missing_F, 0)
        for (name, size), code_N in zip(
            self._sizes.items(), row_NX[:, len(self.options.numbers) :].unbind(dim=1), strict=True
        ):
            found[name] = _counts(code_N, size, least)
        return found

    def check(self, sums: Stats, announced: int) -> None:
        """See Task.check_data_sums."""
        self._numbers.check(sums, announced)
        missing_F = sums["number_missing"]
        refuse_unless(bool(((missing_F >= 0) & (missing_F <= announced)).all()), "more missing values than rows")
        both_F = missing_F + sums["number_count"]
        refuse_unless(bool((both_F <= announced).all()), "more values and missing values than rows")
        for name in self._sizes:
            count = sums[name]
            refuse_unless(
                bool(((count >= 0) & (count <= announced)).all()), "a category has more rows than there are"
            )
            refuse_unless(
                int(count.sum()) <= announced, "the categories of a column have more rows than there are"
            )

    def put(self, inputs: TableInputs, sums: Stats) -> None:
        """See Task.with_data_sums. A column without sums keeps what it started with."""
        mean_F, deviation_F, known_F = self._numbers.mean_and_deviation(sums)
        numbers = inputs.numbers
        numbers.mean.copy_(torch.where(known_F, mean_F, numbers.mean))
        numbers.deviation.copy_(torch.where(known_F, deviation_F, numbers.deviation))
        numbers.may_miss.copy_(sums["number_missing"] > 0)
        for column, (name, size), listed in zip(
            inputs.categories, self._sizes.items(), self.options.categorical.values(), strict=True
        ):
            assert isinstance(column, Categories)
            if sums[name].any():
                _put_categories(column, sums[name], size, 1 if listed else self.options.min_count)


def _counts(code_N: Tensor, size: int, least: int) -> Tensor:
    """int64 [size + 2]: rows of each code, of all others, and missing ones; 0 where fewer than `least`.

    Rows of codes that are too rare here count as others, so that the total says as little as the parts.
    """
    absent_N, listed_N = code_N.isnan(), code_N >= 0
    count = torch.bincount(code_N[listed_N].long(), minlength=size)
    frequent = count >= least
    others = int((~listed_N & ~absent_N).sum()) + int(count[~frequent].sum())
    rest = torch.tensor([others, int(absent_N.sum())])
    return torch.cat([torch.where(frequent, count, 0), torch.where(rest >= least, rest, 0)])


def _put_categories(column: Categories, count: Tensor, size: int, min_count: int) -> None:
    """Keep the most frequent codes with at least `min_count` rows; the same for any order of clients."""
    places = len(column.kept)
    order = torch.sort(count[:size], descending=True, stable=True).indices[:places]
    frequent = order[count[order] >= min_count].sort().values
    kept = torch.full_like(column.kept, _EMPTY)
    if places == size:  # listed: each has its own place
        kept[frequent] = frequent
    else:
        kept[: len(frequent)] = frequent
    others = int(count[size + _OTHER]) + int(count[:size].sum()) - int(count[frequent].sum())
    column.kept.copy_(kept)
    column.seen.copy_(torch.tensor([others > 0, int(count[size + _MISSING]) > 0]))
