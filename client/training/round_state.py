"""What a client remembers from one of its rounds to the next: for methods whose clients have a state of their own.

Kept in Flower's `context.state`, which belongs to one node in one run and outlives messages on every engine; lost
when the client's process ends, and the method then starts afresh for this client.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import RecordDict
from torch import Tensor

from fednc.common.wire import arrays


class Past:
    """Tensors by kind and round. A round that is asked for twice starts both times from the round before it."""

    def __init__(self, state: RecordDict, server_round: int) -> None:
        self._state, self._round = state, server_round

    def read(self, kind: str) -> dict[str, Tensor]:
        """What this client's last earlier round wrote; empty before there is one. Not to be changed in place."""
        earlier = self._earlier(kind)
        return arrays.from_record(self._state.array_records[_name(kind, max(earlier))]) if earlier else {}

    def write(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        """Remember `tensors` for later rounds, and forget all rounds but this one and the one it started from."""
        keep = {self._round, *sorted(self._earlier(kind))[-1:]}
        for number in self._rounds(kind):
            if number not in keep:
                del self._state[_name(kind, number)]
        self._state[_name(kind, self._round)] = arrays.to_record(tensors)

    def _earlier(self, kind: str) -> list[int]:
        return [number for number in self._rounds(kind) if number < self._round]

    def _rounds(self, kind: str) -> list[int]:
        names = (name.rpartition("/") for name in self._state.array_records)
        return [int(number) for found, _, number in names if found == kind]


def _name(kind: str, number: int) -> str:
    return f"{kind}/{number}"
