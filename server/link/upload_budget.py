"""The budget for uploads: they share a number of bytes, wait for their turn, and can be resumed later.

Used by the federation on the event loop. A running upload holds a share of the budget, and so does a complete one
that waits for aggregation. A client that is silent or gone holds none: the bytes that it has sent stay on disk or,
if they are few, in memory, within a small part of the budget.
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
_PART_IN_MEMORY = 8  # one part in 8 of the budget is for small uploads kept in memory


class SupersededError(Exception):
    """The work was settled, or taken over by another call, while this call waited."""


@dataclass(eq=False)
class Slot:
    """The upload of one piece of work so far, the call that sends it, and its share of the budget."""

    upload: SpooledUpload | None = None
    call: object | None = None
    share_bytes: int = 0
    owner: object = None  # the node


@dataclass(frozen=True, eq=False)
class _Turn:
    """An upload that waits."""

    size: int
    owner: object
    came: asyncio.Future[None]


class Budget:
    """A number of bytes shared first come, first served. A request for more than all of it is served alone.

    An owner that already holds bytes waits behind all owners that hold none.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = 0
        self._queue: deque[_Turn] = deque()
        self._held: Counter[object] = Counter()  # bytes by owner

    @property
    def is_wanted(self) -> bool:
        """Whether any request waits."""
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
                self.release(size, owner)  # it was granted just as we were cancelled
            else:
                with suppress(ValueError):
                    self._queue.remove(turn)
                self._serve()
            raise

    def release(self, size: int, owner: object = None) -> None:
        """Return `size` bytes."""
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
        """The first request whose owner holds nothing, else the first one."""
        return next((turn for turn in self._queue if turn.owner not in self._held), self._queue[0])

    def _fits(self, size: int) -> bool:
        return self.used_bytes == 0 or self.used_bytes + size <= self.total_bytes


class Intake:
    """The uploads of one federation."""

    def __init__(self, folder: Path, total_bytes: int) -> None:
        """`folder` is where uploads are stored; it should be on a disk, not on tmpfs."""
        self._folder, self._numbers = folder, itertools.count()
        self.budget = Budget(total_bytes)
        self._room = threading.Semaphore(total_bytes // _PART_IN_MEMORY // WHOLE_BYTES)  # for small uploads
        private_folder(folder)
        if (kind := filesystem_of(folder)) in _IN_MEMORY:
            log.warning("uploads that wait take memory, because the run's folder is on %s: put it on a disk", kind)

    async def open(
        self, slot: Slot, upload_id: bytes, size: int, owner: object = None
    ) -> tuple[object, SpooledUpload]:
        """(token of this call, the upload to continue or a new one), once the budget has room for it.

        `owner` is the node. An earlier call for the same work is superseded at once, because its connection is
        gone.

        Raises:
            SupersededError: another call came, or the work was settled, while this one waited.
            OSError: the upload cannot be stored.
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
        """Give up the slot's share; keep the received bytes. With `call`: only if that call still has the slot."""
        if call is None or slot.call is call:
            share, slot.share_bytes, slot.call = slot.share_bytes, 0, None
            if share:
                self.budget.release(share, slot.owner)

    def drop(self, slot: Slot) -> None:
        """Discard the received bytes."""
        self.suspend(slot)
        self._discard(slot)

    def _discard(self, slot: Slot) -> None:
        if slot.upload:
            slot.upload.discard()
            slot.upload = None

    def hand_over(self, slot: Slot) -> Slot:
        """Move the complete upload and its share to a new slot that no call can reach."""
        complete = Slot(slot.upload, None, slot.share_bytes, slot.owner)
        slot.upload, slot.call, slot.share_bytes = None, None, 0
        return complete
