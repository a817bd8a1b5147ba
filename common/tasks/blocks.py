"""Names of the parts of a model that a run file can freeze or adapt, and what such a choice saves on the link.

A block is a module, by its name in the model's body or in the whole model. A body whose modules have only numbers
may give names to runs of them (`Blocks`). Knows no task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fednc.common.errors import ConfigError

_SHOWN = 40  # names in an error


class Blocks(nn.Sequential):
    """Layers in a row, of which runs have names. The state dict is that of `nn.Sequential`.

    Attributes:
        names: name of each block, in order, with its number of layers.
    """

    def __init__(self, *layers: nn.Module, names: Sequence[tuple[str, int]]) -> None:
        super().__init__(*layers)
        self.names = tuple(names)

    def children_of(self) -> dict[str, tuple[str, ...]]:
        """Numbers of the layers of each block."""
        found: dict[str, tuple[str, ...]] = {}
        first = 0
        for name, count in self.names:
            found[name] = tuple(map(str, range(first, first + count)))
            first += count
        return found


def prefixes(model: nn.Module, body: str, names: Sequence[str], key: str) -> tuple[str, ...]:
    """The prefixes of the state dict's keys that `names` stand for.

    Args:
        body: prefix of the model's body, such as `backbone.`; names are looked up there first.
        key: key of the run file that gives the names.

    Raises:
        ConfigError: the model has no block of that name.
    """
    known = _known(model, body)
    unknown = [name for name in names if name.rstrip(".") not in known]
    if unknown:
        raise ConfigError(
            f"{key}: the model has no block called {', '.join(map(repr, unknown))}. Its blocks are "
            f"{', '.join(top_blocks(model, body)[:_SHOWN])}, and every module inside them by its full name"
        )
    return tuple(prefix for name in names for prefix in known[name.rstrip(".")])


def top_blocks(model: nn.Module, body: str) -> list[str]:
    """Names of the body's blocks and of what they contain directly; then those of the rest of the model."""
    inside = _body(model, body)
    if isinstance(inside, Blocks):
        found = [name for name, _ in inside.names]
    else:
        found = []
        for name, child in inside.named_children():
            if not any(True for _ in child.state_dict()):
                continue
            parts = [f"{name}.{inner}" for inner, each in child.named_children() if len(each.state_dict())]
            found += [name, *(parts if isinstance(child, nn.Sequential | nn.ModuleList) else [])]
    rest = [name for name, child in model.named_children() if f"{name}." != body and len(child.state_dict())]
    return found + (rest if body else [])


def _known(model: nn.Module, body: str) -> dict[str, tuple[str, ...]]:
    """Prefixes by name; names inside the body hide those of the whole model."""
    whole: dict[str, tuple[str, ...]] = {name: (f"{name}.",) for name, _ in model.named_modules() if name}
    inside = _body(model, body)
    within: dict[str, tuple[str, ...]] = {name: (f"{body}{name}.",) for name, _ in inside.named_modules() if name}
    if isinstance(inside, Blocks):
        within |= {
            name: tuple(f"{body}{child}." for child in children) for name, children in inside.children_of().items()
        }
    return {**whole, **within}


def _body(model: nn.Module, body: str) -> nn.Module:
    return model.get_submodule(body.rstrip("."))


@dataclass(frozen=True)
class Traffic:
    """Bytes of the model that travel to each client, before compression (`link.codec`).

    Attributes:
        once: when a client first gets the model. each_round: in every later round, in each direction.
    """

    once: int
    each_round: int

    @classmethod
    def of(cls, shared: Mapping[str, Tensor], trained: Sequence[str]) -> Traffic:
        """Of a model whose tensors are `shared`, of which a round trains those called `trained`."""
        return cls(sum(map(_size, shared.values())), sum(_size(shared[key]) for key in trained))

    @property
    def text(self) -> str:
        """For people."""
        if self.each_round == self.once:
            return f"{self.once:,} bytes of model per client and round, in each direction"
        return (
            f"{self.each_round:,} bytes of model per client and round, in each direction; it would be "
            f"{self.once:,} if all of it were trained"
        )


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
