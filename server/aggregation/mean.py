"""The weighted mean of updates, exact in any order, updated one reply at a time.

Called by the strategy as replies arrive. Each update is checked completely before any of it is added. The running
sum (`exact_sum.py`) takes eight bytes per parameter, whatever the number of clients. Small tensors are summed in
groups, at 24 bytes per parameter: a network has hundreds of them, and one by one the calls would cost more than
the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fednc.common.errors import ProtocolError, UnusableValuesError
from fednc.common.tasks.aggregation import Aggregation
from fednc.common.wire import arrays, update_codec
from fednc.server.aggregation.circular_sum import CircularSum, nearest_turn
from fednc.server.aggregation.exact_sum import BLOCK, HEADROOM, ExactSum, Values, cut, largest
from fednc.server.aggregation.thread_pool import spread

_SPAN = 1 << 20  # values that one thread processes at a time
_SMALL = 1 << 13  # tensors with at most this many values are grouped

Form = tuple[str, tuple[int, ...]]  # dtype and shape
Act = Callable[[int, Values, int], None]  # given the index of an array, a span of its values, the span's position


@dataclass(frozen=True)
class NormBound:
    """The largest allowed L2 norm of an update's change to the floating-point tensors `keys` of the model."""

    most: float
    keys: Collection[str]  # only tensors that are sent as values, not as changes

    @classmethod
    def of(cls, most: float, keys: Collection[str]) -> NormBound | None:
        """The bound for `rounds.max_update_norm`; None if that is 0."""
        return cls(most, keys) if most else None


class Fold:
    """The running weighted mean of updates that have the names, shapes and dtypes of a reference state."""

    def __init__(
        self,
        reference: Mapping[str, Tensor],
        changes: Collection[str] = (),
        aggregation: Callable[[str], Aggregation] = lambda _key: Aggregation.MEAN,
    ) -> None:
        """Allocate memory for states like `reference`. Call `start` before each round.

        Args:
            changes: names of tensors that are sent as changes, not as values.
            aggregation: how each of the others is aggregated.
        """
        self.changes = frozenset(changes)
        self._forms = {key: _form(value) for key, value in reference.items()}
        floats = {key for key, value in reference.items() if value.is_floating_point()} - self.changes
        self._circular = {key for key in floats if aggregation(key) == Aggregation.CIRCULAR}
        self.by_owner = {
            key for key in reference if key not in self.changes and aggregation(key) == Aggregation.OWNERS
        }
        self._groups = _grouped(reference, self._circular, self.by_owner)
        self._sums = [
            (CircularSum if group[0] in self._circular else ExactSum)([reference[key].numel() for key in group])
            for group in self._groups
        ]
        # Of the current round, set by `start`.
        self._reference: Mapping[str, Tensor] = reference
        self._bound: NormBound | None = None
        self._total_weight, self._largest_weight = 0, 0
        self._origins: list[Values] = []  # filled when first needed
        self._counted: list[tuple[int, int]] = []  # weight and updates of each group
        self._trained: list[int] = []  # for each group, the whole weight of the updates that trained it
        self.weight = 0
        self.updates = 0

    def start(
        self, reference: Mapping[str, Tensor], weights: Collection[int], bound: NormBound | None = None
    ) -> None:
        """Reset for a round: `reference` is its global state, `weights` are those of all nodes that may reply."""
        self._reference, self._bound = reference, bound
        self._total_weight, self._largest_weight = sum(weights), max(weights, default=1)
        for group, total in zip(self._groups, self._sums, strict=True):
            total.start(
                [largest(_numpy(reference[key])) for key in group], self._total_weight, self._largest_weight
            )
        self._origins = []
        self.weight = 0
        self.updates = 0
        self._counted = [(0, 0) for _ in self._groups]
        self._trained = [0 for _ in self._groups]

    def add(self, update: ArrayRecord, weight: int, owned: Mapping[str, int] | None = None) -> list[Values]:
        """Add one update, completely or not at all; return its values by group.

        Args:
            owned: for tensors that are averaged over their owners only: those that the sender trained, with
                their weights (at most `weight`). None means all of them, with `weight`.

        Raises:
            ProtocolError: names, shapes or dtypes differ from the reference, or the weight exceeds the announced
            one.
            UnusableValuesError: values are not finite or out of bounds, or the change is larger than allowed.
        """
        if not 1 <= weight <= self._largest_weight or self.weight + weight > self._total_weight:
            raise ProtocolError(f"declares {weight} examples, more than it announced or less than one")
        if owned is not None and not all(1 <= each <= weight for each in owned.values()):
            raise ProtocolError(f"declares weights of single tensors beyond its {weight} examples")
        grouped = self.checked(self.values(update, owned))
        self.add_values(grouped, weight, owned)
        return grouped

    def add_values(self, grouped: Sequence[Values], weight: int, owned: Mapping[str, int] | None = None) -> None:
        """Add the values that `checked` returned."""
        weights, before = self._weights(weight, owned), self._counted

        def act(group: int, span: Values, place: int) -> None:
            if weights[group]:
                self._sums[group].add(span, place, weights[group], is_first=not before[group][1])

        _spread(grouped, act)
        self._count(weights, weight)
        self.weight += weight
        self.updates += 1

    def remove(self, update: ArrayRecord, weight: int, owned: Mapping[str, int] | None = None) -> None:
        """Undo an `add` of the same update and weight, bit for bit."""
        weights = self._weights(weight, owned)

        def act(group: int, span: Values, place: int) -> None:
            if weights[group]:
                self._sums[group].remove(span, place, weights[group])

        _spread(self._grouped(self.values(update, owned)), act)
        self._count(weights, -weight)
        self.weight -= weight
        self.updates -= 1

    def _weights(self, weight: int, owned: Mapping[str, int] | None) -> list[int]:
        """The weight of one update in each group; 0 where the sender did not train it."""
        if owned is None:
            return [weight] * len(self._groups)
        return [owned.get(group[0], 0) if group[0] in self.by_owner else weight for group in self._groups]

    def _count(self, weights: Sequence[int], whole: int) -> None:
        """Note one update by its weight in each group and as a whole; negative to remove it."""
        sign = 1 if whole > 0 else -1
        self._counted = [
            (counted + sign * weight, updates + sign * bool(weight))
            for (counted, updates), weight in zip(self._counted, weights, strict=True)
        ]
        self._trained = [
            trained + whole * bool(weight) for trained, weight in zip(self._trained, weights, strict=True)
        ]

    @property
    def alike(self) -> float:
        """How alike the updates are by the owned tensors that they trained, in (0, 1]; 1 if all trained the same.

        For an owned tensor that an update trained: the share of the round's weight that trained it too. The mean
        over updates, by weight, and tensors. m groups of clients of the same weight that train different tensors
        are 1/m alike.
        """
        groups = zip(self._groups, self._trained, strict=True)
        share = [trained / self.weight for group, trained in groups if trained and group[0] in self.by_owner]
        return math.fsum(one * one for one in share) / math.fsum(share) if share else 1.0

    def checked(self, values: Mapping[str, Values]) -> list[Values]:
        """Check the values of one update and return them by group. Raises UnusableValuesError, see `add`."""
        grouped = self._grouped(values)
        _spread(grouped, self._check)
        if self._bound:
            squares = self.squares(grouped)
            norm = math.sqrt(math.fsum(square for key, square in squares.items() if key in self._bound.keys))
            if not norm <= self._bound.most:
                text = f"changes the model by a norm of {norm:.6g}, allowed are {self._bound.most:g}"
                raise UnusableValuesError(text)
        return grouped

    def values(self, update: ArrayRecord, owned: Mapping[str, int] | None = None) -> dict[str, Values]:
        """The values of each tensor, after a check of names, shapes and dtypes.

        Tensors that the sender did not train have the reference's values; it may leave them out. Angles are
        shifted by whole turns to be closest to the reference's.

        Raises:
            ProtocolError: names, shapes or dtypes differ from the reference.
            UnusableValuesError: an angle is not finite or absurdly large.
        """
        others = frozenset[str]() if owned is None else frozenset(self.by_owner - set(owned))
        odd = sorted((set(update) ^ set(self._forms)) - others)
        if odd:
            raise ProtocolError(f"tensor names differ from the model's, for instance {odd[:3]}")
        values = {key: self._matching(key, update[key]) for key in self._forms if key in update}
        values |= {key: _numpy(self._reference[key]) for key in others}
        return values | {key: self._turned(key, values[key]) for key in self._circular}

    def _turned(self, key: str, value: Values) -> Values:
        origin = _numpy(self._reference[key])
        if not largest(value) <= HEADROOM * max(1.0, largest(origin)):  # NaN compares false
            raise UnusableValuesError(f"tensor {key!r} contains {largest(value)}, expected angles in radians")
        return nearest_turn(value, origin).astype(value.dtype)

    def _grouped(self, values: Mapping[str, Values]) -> list[Values]:
        return [_in_a_row([values[key] for key in group]) for group in self._groups]

    def squares(self, grouped: Sequence[Values]) -> dict[str, float]:
        """Squared L2 norm of each floating-point tensor's difference from the reference."""
        if not self._origins:
            self._origins = [_in_a_row([self._origin_of(key) for key in group]) for group in self._groups]
        found: list[list[list[float]]] = [[] for _ in self._groups]

        def note(group: int, span: Values, place: int) -> None:
            origin = self._origins[group]
            if origin.dtype.kind == "f":
                here = origin[place : place + span.size]
                found[group].append(self._sums[group].squares(span, here))

        _spread(grouped, note)
        # fsum is exact, so the order in which threads finish does not change the result.
        return {
            key: math.fsum(square)
            for group, parts in zip(self._groups, found, strict=True)
            for key, square in zip(group, zip(*parts, strict=True), strict=False)
        }

    def _origin_of(self, key: str) -> Values:
        value = _numpy(self._reference[key]).reshape(-1)
        return np.zeros_like(value) if key in self.changes else value

    def scaled(
        self, update: ArrayRecord, factors: Mapping[str, float], owned: Mapping[str, int] | None = None
    ) -> ArrayRecord:
        """`update` with the change of each floating-point tensor in `factors` multiplied by its factor."""
        values, tensors = self.values(update, owned), {}
        for key, value in values.items():
            given = torch.tensor(value).reshape(self._reference[key].shape)
            if key in factors and self._reference[key].is_floating_point():
                origin = 0.0 if key in self.changes else self._reference[key].double()
                given = origin + factors[key] * (given.double() - origin)
            tensors[key] = given.to(self._reference[key].dtype)
        return arrays.to_record(tensors)

    def _matching(self, key: str, array: Array) -> Values:
        try:
            return _matching(array, self._forms[key], self._reference[key])
        except ProtocolError as e:
            raise ProtocolError(f"tensor {key!r}: {e}") from e

    def _check(self, group: int, span: Values, _place: int) -> None:
        total = self._sums[group]
        for key, found, bound in zip(self._groups[group], total.largest(span), total.bounds, strict=True):
            if not found <= bound:  # NaN compares false
                raise UnusableValuesError(
                    f"tensor {key!r} contains {found}; only finite values up to {bound:g} are allowed"
                )

    def mean(self) -> ArrayRecord:
        """The mean of all updates in the reference's dtypes; the reference's values where nothing was averaged."""
        record = arrays.blank_record(self._reference)
        tensors = {key: arrays.to_tensor(record[key]) for key in record}
        for key in set(tensors).difference(*self._groups):
            tensors[key].copy_(self._reference[key])
        targets = [_target([tensors[key] for key in group]) for group in self._groups]

        def act(group: int, span: Values, place: int) -> None:
            if self._counted[group][1]:
                self._sums[group].mean_into(span, place, *self._counted[group])

        _spread(targets, act)
        for group, mean, (_, updates) in zip(self._groups, targets, self._counted, strict=True):
            if not updates or group[0] in self._circular:
                origin = _in_a_row([_numpy(self._reference[key]) for key in group]).reshape(mean.shape)
                np.copyto(mean, nearest_turn(mean, origin) if updates else origin, casting="unsafe")
            _share_out(mean, [tensors[key] for key in group])
        return record


def _spread(values: Sequence[Values], act: Act) -> None:
    """Call `act` on all values, on several threads if there are many."""
    spread(
        (
            (span.size, partial(act, index, span, place))
            for index, value in enumerate(values)
            for place, span in cut(value, _SPAN)
        ),
        enough=_SPAN,
    )


def _grouped(
    reference: Mapping[str, Tensor], circular: Collection[str], alone: Collection[str]
) -> list[list[str]]:
    """Names of the averaged tensors in groups that are summed together: small tensors of the same dtype."""
    groups: list[list[str]] = []
    # The last group of each dtype (angles separate), and how many values still fit into it.
    room: dict[tuple[torch.dtype, bool], tuple[list[str], int]] = {}
    for key, value in reference.items():
        if value.dtype is torch.bool:
            continue
        kind = value.dtype, key in circular
        group, left = room.get(kind, ([], 0))
        if key in alone or not 0 < value.numel() <= _SMALL:
            groups.append([key])
        elif value.numel() <= left:
            group.append(key)
            room[kind] = group, left - value.numel()
        else:
            groups.append([key])
            room[kind] = groups[-1], BLOCK - value.numel()
    return groups


def _in_a_row(values: Sequence[Values]) -> Values:
    return values[0] if len(values) == 1 else np.concatenate([each.reshape(-1) for each in values])


def _target(tensors: Sequence[Tensor]) -> Values:
    """Memory for the mean of a group. A single tensor's own memory is used if numpy knows its dtype."""
    first = _numpy(tensors[0])
    return first if len(tensors) == 1 else np.empty(sum(each.numel() for each in tensors), first.dtype)


def _share_out(mean: Values, tensors: Sequence[Tensor]) -> None:
    parts = torch.from_numpy(mean).reshape(-1).split([each.numel() for each in tensors])
    for part, tensor in zip(parts, tensors, strict=True):
        if part.data_ptr() != tensor.data_ptr():  # else the mean was written in place
            tensor.copy_(part.reshape(tensor.shape))


def _numpy(value: Tensor) -> Values:
    return value.float().numpy() if value.dtype is torch.bfloat16 else value.numpy()


def _form(value: Tensor) -> Form:
    return str(value.dtype).removeprefix("torch."), tuple(value.shape)


def _matching(array: Array, form: Form, reference: Tensor) -> Values:
    dtype, shape = form
    if array.dtype != dtype or tuple(array.shape) != shape:
        raise ProtocolError(f"is {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}")
    if update_codec.is_encoded(array.stype):
        return (reference + update_codec.decode(array)).numpy()
    if array.stype == arrays.RAW_BF16:
        return _numpy(arrays.to_tensor(array))
    value = arrays.to_numpy(array)
    return value if value.flags.aligned else value.copy()
