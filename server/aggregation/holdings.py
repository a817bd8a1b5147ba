"""What each node says it holds, and how much of it counts.

Asked by the strategy before weights, class sums and statistics of a node are used: the node's own announcement is
the only source, every later claim is held against it, and claims far from everybody else's do not count in full.
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

# Ten Dirichlet(0.05) splits over ten clients stayed below: at most 4.0 times the median.
FAR, ABSURD = 5, 50
# With two clients there is no majority to compare with: this only keeps the precision of the exact sum.
FAR_IN_A_PAIR = 64
CLEAR_MAJORITY = 3  # of whom one cannot move the median far; below, nobody can be told to be the odd one


@dataclass(frozen=True)
class Holding:
    """What a node announced for the stage under way."""

    examples: int
    held_out: int
    count_K: tuple[int, ...]

    @classmethod
    def of(cls, content: RecordDict, label_space: int, declared: Declared | None = None) -> Holding:
        """What a `hello` reply says; `declared` is what the node said when it attended, where that is known.

        Raises:
            ProtocolError: not numbers of examples.
            StaleError: more than the node declared.
        """
        examples = messages.examples_of(content)
        metrics = record_of(content, METRICS, MetricRecord) or MetricRecord()
        held_out, count_K = metrics.get(HELD_OUT), metrics.get(CLASS_COUNTS)
        if not isinstance(held_out, int) or not 0 <= held_out <= MAX_EXAMPLES:
            raise ProtocolError(f"the reply holds out {held_out!r:.80} examples, expected 0 to {MAX_EXAMPLES}")
        if not isinstance(count_K, list) or len(count_K) != label_space:
            raise ProtocolError(f"the reply counts no examples for each of the {label_space} classes")
        counts = [count for count in count_K if isinstance(count, int)]
        if len(counts) != label_space or min(counts, default=0) < 0 or sum(counts) > examples:
            raise ProtocolError(f"the reply's class counts are not those of {examples} examples")
        found = cls(examples, held_out, tuple(counts))
        if declared and not found.is_within(declared):
            raise StaleError("the reply announces more examples than the node declared when it attended")
        return found

    def is_within(self, declared: Declared) -> bool:
        """Whether a node that declared this may announce it; in a session it announces a part."""
        examples, held_out, count_K = declared
        pairs = zip(self.count_K, count_K or self.count_K, strict=False)
        return self.examples <= examples and self.held_out <= held_out and all(a <= b for a, b in pairs)


def believed(claims: Mapping[int, int], most: int = 0) -> dict[int, int]:
    """How many examples each node counts for, of those that it claims.

    A claim beyond `FAR` times the median counts as the median, not as the bound: somebody who lies would otherwise
    always get the most that is allowed. Beyond `ABSURD` times the median it is not believed at all and counts for
    nothing: 0. An operator who knows of a large site sets `most` instead.

    Args:
        claims: positive numbers of examples, by node.
        most: examples that any node may count for at most; 0: see above.
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
