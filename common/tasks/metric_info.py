"""What code that shows or compares a metric must know: name, direction, unit.

Defined by the run's task; used by history, status, live view, Prometheus and reports. Does not import torch, so
that commands that only show a value start fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

PERCENT = "%"  # unit of a share, which is stored as 0 to 1 and shown in percent


@dataclass(frozen=True)
class MetricInfo:
    """Name of a metric, which direction is better, and its unit."""

    name: str
    higher_is_better: bool = True
    unit: str = ""

    def show(self, value: float, digits: int = 1) -> str:
        """The value as text for users: `81.5%`, `3.42 mmHg`."""
        if self.unit == PERCENT:
            return f"{value:.{digits}%}"
        return f"{value:.4g} {self.unit}".rstrip()

    def is_better(self, value: float, than: float) -> bool:
        """Whether `value` is strictly better."""
        return value > than if self.higher_is_better else value < than

    def best(self, values: Sequence[float]) -> float | None:
        """The best of `values`; None if there are none."""
        return (max if self.higher_is_better else min)(values, default=None)

    def reaches(self, value: float, target: float) -> bool:
        """Whether `value` is at least as good as `target`."""
        return not self.is_better(target, value)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


ACCURACY = MetricInfo("accuracy", unit=PERCENT)
