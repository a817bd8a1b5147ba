"""Nodes that are connected but do not answer: nobody waits for them again and again.

Asked by the strategy before each exchange. A node that let a deadline pass is left out for the rest of the round;
after several such rounds in a row it is asked less and less often, and named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

_PATIENCE = 2  # rounds in a row without an answer before a node is left out of whole rounds
_LONGEST = 8  # rounds that it is left out of at most


class Absentees:
    """Who did not answer lately. Forgotten when the server restarts."""

    def __init__(self) -> None:
        self._rounds: dict[int, list[int]] = {}  # node: rounds in a row in which a deadline passed

    def note(self, server_round: int, asked: Collection[int], answered: Collection[int]) -> list[int]:
        """An exchange is over. Returns the nodes that are left out of whole rounds from now on."""
        for node in answered:
            if self._rounds.get(node, [])[-1:] != [server_round]:  # silent earlier in this round counts
                self._rounds.pop(node, None)
        fresh = []
        for node in sorted(set(asked) - set(answered)):
            missed = self._rounds.setdefault(node, [])
            if missed[-1:] != [server_round]:
                missed.append(server_round)
                if len(missed) >= _PATIENCE:
                    fresh.append(node)
        return fresh

    def present(self, server_round: int, nodes: Iterable[int]) -> list[int]:
        """Those of `nodes` that are asked in this round."""
        return [node for node in nodes if not self._is_out(server_round, node)]

    def resting(self, node: int) -> int:
        """For how many rounds the node is left out after it was silent last."""
        missed = len(self._rounds.get(node, []))
        return min(2 ** (missed - _PATIENCE), _LONGEST) if missed >= _PATIENCE else 0

    def _is_out(self, server_round: int, node: int) -> bool:
        missed = self._rounds.get(node, [])
        return bool(missed) and missed[-1] <= server_round <= missed[-1] + self.resting(node)
