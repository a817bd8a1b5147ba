"""Keeps rounds from waiting again and again for nodes that are connected but do not answer.

The strategy asks before each exchange. A node that missed a deadline is left out for the rest of the round. After
several such rounds in a row it is asked less and less often, and reported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

_PATIENCE = 2  # rounds in a row without an answer before a node is left out of whole rounds
_LONGEST = 8  # the most rounds that a node is left out of


class Absentees:
    """Nodes that did not answer lately. Forgotten when the server restarts."""

    def __init__(self) -> None:
        self._rounds: dict[int, list[int]] = {}  # node: consecutive rounds in which it missed a deadline

    def note(self, server_round: int, asked: Collection[int], answered: Collection[int]) -> list[int]:
        """Note the end of an exchange. Returns the nodes that are left out of whole rounds from now on."""
        for node in answered:
            if self._rounds.get(node, [])[-1:] != [server_round]:  # a miss earlier in this round still counts
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
        """The nodes of `nodes` that are asked in this round."""
        return [node for node in nodes if not self._is_out(server_round, node)]

    def resting(self, node: int) -> int:
        """How many rounds the node is left out after its last miss."""
        missed = len(self._rounds.get(node, []))
        return min(2 ** (missed - _PATIENCE), _LONGEST) if missed >= _PATIENCE else 0

    def _is_out(self, server_round: int, node: int) -> bool:
        missed = self._rounds.get(node, [])
        return bool(missed) and missed[-1] <= server_round <= missed[-1] + self.resting(node)
