"""The class means of a run against its frame, from the newest checkpoint.

Reads only the frame and the memory from the file of tensors, never the model. Remembers the last checkpoints that
it saw, because the server deletes old ones.

Legend: K label space, D feature width.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fednc.common.peer_text import one_line
from fednc.ops.console.charts import Points, corner

_KEPT = 24  # snapshots
_MOST_CLASSES = 4096
_FRAME, _MEANS, _SEEN = "frame.etf_KD", "memory.mean_KD", "memory.seen_K"


@dataclass(frozen=True)
class ClassPlace:
    """Where the mean of one class lies.

    Attributes:
        own: cosine to its own vertex; NaN if no client has had the class.
        other: the largest cosine to another vertex, and whose that is.
        length: of the mean of unit features: 1 if they are all the same.
    """

    name: str
    own: float
    other: float
    nearest: str
    length: float

    @property
    def margin(self) -> float:
        """How much nearer the own vertex is, as a cosine."""
        return self.own - self.other


@dataclass(frozen=True)
class Snapshot:
    """One round."""

    round: int
    places: tuple[ClassPlace, ...]
    spots: tuple[tuple[float, float] | None, ...]  # in the plane of `charts.simplex`


@dataclass
class Geometry:
    """The geometry of one run. `why_not` says why there is none."""

    folder: Path
    snapshots: deque[Snapshot] = field(default_factory=lambda: deque(maxlen=_KEPT))
    why_not: str = "no checkpoint yet: the picture comes with the first completed round"
    version: int = 0
    _seen: str = ""

    def read(self) -> None:
        """Look at the newest checkpoint, if it is new."""
        newest = max((self.folder / "checkpoints").glob("round-*.json"), default=None)
        if newest is None or newest.name == self._seen:
            return
        try:
            found = _snapshot(newest)
        except FileNotFoundError:
            return  # the server has just replaced it
        except (OSError, ValueError, KeyError, TypeError) as e:
            self.why_not = f"{newest.name} cannot be read ({type(e).__name__})"
            return
        self._seen, self.version = newest.name, self.version + 1
        if isinstance(found, str):
            self.why_not = found
        else:
            if self.snapshots and found.round <= self.snapshots[-1].round:
                self.snapshots.clear()
            self.snapshots.append(found)

    @property
    def now(self) -> Snapshot | None:
        """The newest snapshot."""
        return self.snapshots[-1] if self.snapshots else None

    def trails(self) -> list[Points]:
        """Where each class lay in the earlier snapshots."""
        earlier = list(self.snapshots)[:-1]
        count = len(self.snapshots[-1].spots) if self.snapshots else 0
        return [[spot for one in earlier if k < len(one.spots) and (spot := one.spots[k])] for k in range(count)]


def _snapshot(manifest: Path) -> Snapshot | str:
    """The geometry of a checkpoint, or why it has none. Raises OSError, ValueError, KeyError, TypeError."""
    import numpy as np
    from safetensors import safe_open

    head = json.loads(manifest.read_text(encoding="utf-8"))
    with safe_open(manifest.with_suffix(".safetensors"), "np") as tensors:
        if not {_FRAME, _MEANS, _SEEN} <= set(tensors.keys()):
            return "this task has no classes, so there is no frame"
        frame_KD, mean_KD, seen_K = (tensors.get_tensor(name) for name in (_FRAME, _MEANS, _SEEN))
    if frame_KD.ndim != 2 or not 2 <= len(frame_KD) <= _MOST_CLASSES:
        return "this run has no frame, or one with too few or too many vertices to draw"
    space = ((head.get("config") or {}).get("method") or {}).get("memory_space")
    if frame_KD.shape != mean_KD.shape or space == "backbone":  # their widths may be equal all the same
        return "the memory lies before the projection, so its means cannot be compared with the vertices"
    if not seen_K.any():
        return "no class has a mean yet"
    length_K = np.linalg.norm(mean_KD, axis=1)
    cosine_KK = (mean_KD / np.maximum(length_K, 1e-12)[:, None]) @ frame_KD.T
    names = _names(head, len(frame_KD))
    used = max(len(names), int(seen_K.nonzero()[0].max()) + 1)
    names = [*names, *(f"class {k}" for k in range(len(names), used))]
    places = tuple(_place(k, names, cosine_KK[k], length_K[k], bool(seen_K[k])) for k in range(used))
    corners = np.array([corner(k, used) for k in range(used)])
    # The linear map that takes vertex k to corner k; the corners add up to zero, and all vertices have one angle.
    spot_K2 = (cosine_KK[:used, :used] @ corners) / (1 - float(frame_KD[0] @ frame_KD[1]))
    spots = tuple((float(x), float(y)) if seen_K[k] else None for k, (x, y) in enumerate(spot_K2))
    return Snapshot(int(head["round"]), places, spots)


def _place(k: int, names: Sequence[str], cosine_K: Any, length: float, is_seen: bool) -> ClassPlace:
    if not is_seen:
        return ClassPlace(names[k], math.nan, math.nan, "", 0.0)
    others = [(float(value), j) for j, value in enumerate(cosine_K[: len(names)]) if j != k]
    other, nearest = max(others, default=(math.nan, k))
    return ClassPlace(names[k], float(cosine_K[k]), other, names[nearest], float(length))


def _names(head: dict[str, Any], vertices: int) -> list[str]:
    """Names of the classes, as far as the run file or the registry of classes has them."""
    groups = (head.get("classes") or {}).get("groups") or []
    config = head.get("config") or {}
    names = [name for group in groups for name in group] or config.get("task", {}).get("classes") or []
    return [one_line(name, 80) for name in names if isinstance(name, str)][:vertices]
