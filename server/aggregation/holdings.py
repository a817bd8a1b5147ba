"""How many examples each node announces, and how many of them count.

The strategy asks before it uses a node's weight, class sums or statistics. The node's own announcement is the only
source. Later claims are checked against it, and a claim far above the others does not count in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_high

from flwr.app import MetricRecord, RecordDict

from fednc.common.errors import ProtocolError, StaleError
from fednc.common.wire import messages
from fednc.common.wire.messages import CLASS_COUNTS, HELD_OUT, MAX_EXAMPLES, METRICS
from fednc.common.wire.records import record_of

Declared = tuple[int, int, tuple[int, ...]]  # examples, held out, examples per class

# In ten Dirichlet(0.05) splits over ten clients, no client held more than 4.0 times the median.
FAR, ABSURD = 5, 50
# With two clients there is no majority to compare with; this bound only protects the precision of the exact sum.
FAR_IN_A_PAIR = 64
CLEAR_MAJORITY = 3  # nodes: among three or more, one alone cannot move the median far


@dataclass(frozen=True)
class Holding:
    """What a node announced for the current stage."""

    examples: int
    held_out: int
    count_K: tuple[int, ...]

    @classmethod
    def of(
        cls, content: RecordDict, label_space: int, declared: Declared | None = None, members_per_example: int = 1
    ) -> Holding:
        """Read a `hello` reply.

        Args:
            declared: what the node declared when it attended, if known.
            members_per_example: the most members of classes that an example has.

        Raises:
            ProtocolError: the counts are missing or contradict each other.
            StaleError: the reply announces more than the node declared.
        """
        examples = messages.examples_of(content)
        metrics = record_of(content, METRICS, MetricRecord) or MetricRecord()
        held_out, count_K = metrics.get(HELD_OUT), metrics.get(CLASS_COUNTS)
        if not isinstance(held_out, int) or not 0 <= held_out <= MAX_EXAMPLES:
            raise ProtocolError(f"the reply holds out {held_out!r:.80} examples, expected 0 to {MAX_EXAMPLES}")
        if not isinstance(count_K, list) or len(count_K) != label_space:
            raise ProtocolError(f"the reply does not hold one count for each of the {label_space} classes")
        counts = [count for count in count_K if isinstance(count, int)]
        most = examples * members_per_example
        if len(counts) != label_space or min(counts, default=0) < 0 or sum(counts) > most:
            raise ProtocolError(f"the reply's class counts do not fit its {examples} examples")
        found = cls(examples, held_out, tuple(counts))
        if declared and not found.is_within(declared):
            raise StaleError("the reply announces more examples than the node declared when it attended")
        return found

    def is_within(self, declared: Declared) -> bool:
        """Whether the announcement is at most what the node declared; in a session it is only a part of that."""
        examples, held_out, count_K = declared
        pairs = zip(self.count_K, count_K or self.count_K, strict=False)
        return self.examples <= examples and self.held_out <= held_out and all(a <= b for a, b in pairs)


def believed(claims: Mapping[int, int], most: int = 0) -> dict[int, int]:
    """How many of the examples that it claims each node counts for.

    A claim above `FAR` times the median counts as the median, not as the bound: otherwise a liar would always get
    the most that is allowed. A claim above `ABSURD` times the median counts as 0. An operator who knows about a
    large site sets `most` instead.

    Args:
        claims: positive numbers of examples, by node.
        most: the most examples that any node may count for; 0: use the median as above.
    """
    if most:
        return {node: min(claim, most) for node, claim in claims.items()}
    if len(claims) < CLEAR_MAJORITY:
        bound = FAR_IN_A_PAIR * min(claims.values(), default=1)
        return {node: min(claim, bound) for node, claim in claims.items()}
    usual = median_high(claims.values())
    return {node: _plausible(claim, usual) for node, claim in claims.items()}


def _plausible(claim: int, usual: int) -> int:
    if claim <= FAR * usual:
        return claim
    return usual if claim <= ABSURD * usual else 0
