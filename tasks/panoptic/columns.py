"""Which query and which column of the classifier stands for what.

Queries: thing queries, then one for each stuff class, then one for each part. Columns, which are vertices of the
frame: the classes, then the parts, then `no object`. Used by data, model and losses. Knows no tensors of pictures.

Legend: C classes, P parts, Q thing queries, S stuff queries, N = Q + S + P queries, K columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fednc.tasks.panoptic.options import PanopticOptions

NO_OBJECT = "no object"


@dataclass(frozen=True)
class Columns:
    """The layout of a run.

    Attributes:
        classes: names, in the order of label values.
        things: label values of things.
        stuff: label values of stuff.
        parts: (label value of the whole, value of the part from 1 on), by class.
        part_names: of each part, with the name of its whole.
        queries: Q.
        space: K, with reserved columns behind `no object`.
    """

    classes: tuple[str, ...]
    things: tuple[int, ...]
    stuff: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]
    part_names: tuple[str, ...]
    queries: int
    space: int

    @classmethod
    def of(cls, options: PanopticOptions, space: int = 0) -> Columns:
        """The layout for the keys of `[task]`; `space`: K, at least as many as there are names."""
        place = {name: value for value, name in enumerate(options.classes)}
        parts = [
            (place[whole], 1 + i, f"{whole}/{own[i]}")
            for whole, own in options.parts.items()
            for i in range(len(own))
        ]
        parts.sort()
        return cls(
            classes=options.classes,
            things=tuple(place[name] for name in options.classes if name in options.things),
            stuff=tuple(place[name] for name in options.classes if name not in options.things),
            parts=tuple((whole, part) for whole, part, _ in parts),
            part_names=tuple(name for _, _, name in parts),
            queries=options.queries,
            space=max(space, len(place) + len(parts) + 1),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each column, without reserved ones."""
        return (*self.classes, *self.part_names, NO_OBJECT)

    @property
    def no_object(self) -> int:
        """The column of queries that stand for nothing."""
        return len(self.classes) + len(self.parts)

    @property
    def all_queries(self) -> int:
        """N."""
        return self.queries + len(self.stuff) + len(self.parts)

    @property
    def part_rows(self) -> slice:
        """The part queries among all queries."""
        return slice(self.queries + len(self.stuff), self.all_queries)

    @property
    def part_ids(self) -> dict[int, tuple[int, ...]]:
        """Part values of each class that has parts."""
        wholes = {whole for whole, _ in self.parts}
        return {whole: tuple(part for of, part in self.parts if of == whole) for whole in sorted(wholes)}

    @property
    def own_M(self) -> Tensor:
        """int64 [S + P]: the column of each stuff and part query, which never changes."""
        return torch.tensor([*self.stuff, *range(len(self.classes), self.no_object)], dtype=torch.int64)

    @property
    def allowed_NK(self) -> Tensor:
        """bool [N, K]: the columns of each query. A thing is a thing or nothing, the others are their own or
        nothing.
        """
        found = torch.zeros(self.all_queries, self.space, dtype=torch.bool)
        found[: self.queries, list(self.things)] = True
        found[torch.arange(self.queries, self.all_queries), self.own_M] = True
        found[:, self.no_object] = True
        return found
