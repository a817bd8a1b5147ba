"""The mean of one round, as `[rounds]` asks for it: streamed with a check for outliers, or robust.

Called by the strategy as replies arrive. Reports updates that were not used as they were sent.
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ArrayRecord

from fednc.common.config.tables import RoundsSection
from fednc.server.aggregation.holdings import CLEAR_MAJORITY
from fednc.server.aggregation.mean import Fold
from fednc.server.aggregation.outliers import OutlierGuard, Owned
from fednc.server.aggregation.robust_mean import RobustMean
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import RobustMeanSkipped, UpdateOutlier


class RoundMean:
    """Collects the updates of one round and computes their mean."""

    def __init__(
        self,
        fold: Fold,
        rounds: RoundsSection,
        asked: int,
        events: EventLog,
        name_of: Callable[[int], str],
    ) -> None:
        """`fold.start` was called for this round; `asked` nodes may contribute."""
        self._events, self._name_of, self._fold = events, name_of, fold
        self._mean: RobustMean | OutlierGuard
        if rounds.robust == "none":
            self._mean = OutlierGuard(fold, ratio=rounds.outlier_ratio, asked=asked)
        else:
            self._mean = RobustMean(fold, rounds.robust, rounds.trim_share)

    def add(self, node: int, update: ArrayRecord, weight: int, owned: Owned = None) -> None:
        """Add one update, completely or not at all. Raises ProtocolError, see Fold.add."""
        self._mean.add(node, update, weight, owned)

    def finish(self) -> tuple[ArrayRecord, set[int]]:
        """(the mean, nodes whose updates are not in it). The fold then has the number and weight of the others."""
        if isinstance(self._mean, RobustMean):
            if self._mean.updates < CLEAR_MAJORITY:
                text = f"rounds.robust is skipped: {self._mean.updates} updates came, it needs {CLEAR_MAJORITY}"
                self._events.emit(RobustMeanSkipped(text=text, updates=self._mean.updates))
            return self._mean.mean(), set()
        outliers = self._mean.settle()
        for outlier in outliers:
            name = self._name_of(outlier.node)
            done = "left out" if outlier.is_left_out else "scaled down"
            text = f"the update of {name} is {outlier.times:.3g} times as large as the median: {done}"
            self._events.emit(UpdateOutlier(text=text, node=name, times=outlier.times, done=done))
        return self._fold.mean(), {outlier.node for outlier in outliers if outlier.is_left_out}
