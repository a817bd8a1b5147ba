"""Who may send bulk now: uploads share one budget, wait their turn before a byte flows, and are continued later.

Used by the federation, on the event loop. A share of the budget is held by a running upload and by a complete one
that waits for the fold, never by a client that is silent or gone: what it has sent stays on the disk or, if small,
in memory, within a part of the budget.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fednc.common.files import filesystem_of, private_folder
from fednc.common.wire.protocol import WHOLE_BYTES
from fednc.server.link.upload_store import FileStore, MemoryStore, SpooledUpload

log = logging.getLogger("fednc.server")
_IN_MEMORY = ("tmpfs", "ramfs")
_PART_IN_MEMORY = 8  # of the budget, for all of those


class SupersededError(Exception):
    """The work was settled or taken over by another call while this one waited."""


@dataclass(eq=False)
class Slot:
    """What one piece of work has sent so far, the call that is sending it, and the share that is held for it."""

    upload: SpooledUpload | None = None
    call: object | None = None
    share_bytes: int = 0
    owner: object = None  # the node


@dataclass(frozen=True, eq=False)
class _Turn:
    """One that waits."""

    size: int
    owner: object
    came: asyncio.Future[None]


class Budget:
    """A number of bytes shared first come, first served; one who wants more than all of it passes alone.

    An owner that holds bytes already waits behind all those that hold none.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self._queue: deque[_Turn] = deque()
        self._held: Counter[object] = Counter()  # bytes by owner

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits."""
        return bool(self._queue)

    async def acquire(self, size: int, owner: object = None) -> None:
        """Wait until it is our turn and `size` bytes fit."""
        if not size:
            return
        turn = _Turn(size, owner, asyncio.get_running_loop().create_future())
        self._queue.append(turn)
        self._serve()
        try:
            await turn.came
        except asyncio.CancelledError:
            if turn.came.done() and not turn.came.cancelled():
                self.release(size, owner)  # it was given to us in the moment in which we left
            else:
                with suppress(ValueError):
                    self._queue.remove(turn)
                self._serve()
            raise

    def release(self, size: int, owner: object = None) -> None:
        """Give `size` bytes back."""
        self.used_bytes -= size
        if owner is not None:
            self._held[owner] -= size
            if not self._held[owner]:
                del self._held[owner]
        self._serve()

    def _serve(self) -> None:
        while self._queue and self._fits((turn := self._next()).size):
            self._queue.remove(turn)
            if not turn.came.done():
                self.used_bytes += turn.size
                if turn.owner is not None:
                    self._held[turn.owner] += turn.size
                turn.came.set_result(None)

    def _next(self) -> _Turn:
        """The first whose owner holds nothing, else the first."""
        return next((turn for turn in self._queue if turn.owner not in self._held), self._queue[0])

    def _fits(self, size: int) -> bool:
        return self.used_bytes == 0 or self.used_bytes + size <= self.total_bytes


class Intake:
    """The uploads of one federation."""

    def __init__(self, folder: Path, total_bytes: int) -> None:
        """`folder` receives the bytes; it must lie on a disk, not in memory."""
        self._folder, self._numbers = folder, itertools.count()
        self.budget = Budget(total_bytes)
        self._room = threading.Semaphore(total_bytes // _PART_IN_MEMORY // WHOLE_BYTES)  # for small uploads
        private_folder(folder)
        if (kind := filesystem_of(folder)) in _IN_MEMORY:
            log.warning(
                "uploads that wait take memory, for the run's folder lies in it (%s): put it on a disk", kind
            )

    async def open(
        self, slot: Slot, upload_id: bytes, size: int, owner: object = None
    ) -> tuple[object, SpooledUpload]:
        """(this call, the upload to continue or a new one), once the budget has room for it.

        `owner` is the node. A call that was sending for the same work is superseded at once: its connection is
        gone.

        Raises:
            SupersededError: another call came, or the work was settled, while this one waited.
            OSError: the spool cannot be written.
        """
        self.suspend(slot)
        call = slot.call = object()
        await self.budget.acquire(size, owner)
        if slot.call is not call:
            self.budget.release(size, owner)
            raise SupersededError
        slot.share_bytes, slot.owner = size, owner
        if slot.upload is None or (slot.upload.upload_id, slot.upload.size) != (upload_id, size):
            self._discard(slot)
            try:
                slot.upload = SpooledUpload(self._store(size), upload_id, size)
            except OSError:
                self.suspend(slot)
                raise
        return call, slot.upload

    def _store(self, size: int) -> MemoryStore | FileStore:
        """Raises OSError."""
        if size <= WHOLE_BYTES and self._room.acquire(blocking=False):
            return MemoryStore(self._room.release)
        return FileStore(self._folder / f"{next(self._numbers):08d}")

    def suspend(self, slot: Slot, call: object | None = None) -> None:
        """Nobody sends for the slot any more; what was received stays. With `call`: unless another took over."""
        if call is None or slot.call is call:
            share, slot.share_bytes, slot.call = slot.share_bytes, 0, None
            if share:
                self.budget.release(share, slot.owner)

    def drop(self, slot: Slot) -> None:
        """Forget what was received."""
        self.suspend(slot)
        self._discard(slot)

    def _discard(self, slot: Slot) -> None:
        if slot.upload:
            slot.upload.discard()
            slot.upload = None

    def hand_over(self, slot: Slot) -> Slot:
        """The complete upload with its share, in a slot of its own that no call can touch."""
        complete = Slot(slot.upload, None, slot.share_bytes, slot.owner)
        slot.upload, slot.call, slot.share_bytes = None, None, 0
        return complete
