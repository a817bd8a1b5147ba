"""The owner's limits on a client: hours, memory, disk. Wraps the link and its host; neither knows about it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message

from fednc.client.link.link import Host, Link
from fednc.common.wire.failure_reasons import CodedError
from fednc.protos import federation_pb2 as pb

_GIB = 1 << 30
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


async def attend_for(link: Link, hours: float) -> pb.RunOver | None:
    """Attend; after so many hours take no more work, finish the current work and leave (None).

    Raises:
        RefusedError, FedncError: see Link.run.
    """
    attending = asyncio.create_task(link.run())
    try:
        await asyncio.wait({attending}, timeout=hours * 3600)
        if not attending.done():
            await asyncio.wait({attending, asyncio.create_task(link.drain())}, return_when=asyncio.FIRST_COMPLETED)
        return attending.result() if attending.done() else None
    finally:
        attending.cancel()
        await asyncio.gather(attending, return_exceptions=True)


class OutOfReserveError(CodedError):
    """This machine is short of memory or disk; the server gets the code as a reply."""

    code = "below-reserve"


class DownloadTooLargeError(CodedError):
    """The server offers a larger download than this client's owner accepts."""

    code = "too-large"


@dataclass(frozen=True)
class DownloadBounds:
    """How many bytes one download may have; judged by its manifest, before a byte is downloaded."""

    max_gib: float = 0  # 0: no limit but the memory that is free
    min_free_gib: float = 0

    def admit(self, size: int) -> None:
        """Return if `size` bytes may be downloaded. Raises DownloadTooLargeError, OutOfReserveError."""
        if self.max_gib and size > self.max_gib * _GIB:
            raise DownloadTooLargeError(
                f"the server offers a download of {size / _GIB:.2f} GiB; at most {self.max_gib:g} are accepted "
                "(--max-download-gib). Raise the limit if you trust this server"
            )
        free = free_bytes().get("memory")
        if free is not None and size > free - self.min_free_gib * _GIB:
            raise OutOfReserveError(
                f"the server offers a download of {size / _GIB:.2f} GiB; {free / _GIB:.2f} GiB of memory are free "
                f"and {self.min_free_gib:g} must stay free (--min-free-gib). Free some memory, or skip this run"
            )


class Reserve:
    """A host that refuses work while less than `min_free_gib` of memory or disk is free."""

    def __init__(self, host: Host, min_free_gib: float) -> None:
        self._host, self._min_free_gib = host, min_free_gib

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        """See Host."""
        return self._host.prepare(welcome)

    def examples_having(self) -> Sequence[int]:
        """See Host."""
        return self._host.examples_having()

    def work(self, message: Message) -> Message:
        """See Host. Raises OutOfReserveError."""
        for what, free in free_bytes().items():
            if free < self._min_free_gib * _GIB:
                raise OutOfReserveError(
                    f"{free / _GIB:.2f} GiB of {what} are free, less than the {self._min_free_gib:g} of "
                    "--min-free-gib. Free some, or lower the limit"
                )
        return self._host.work(message)

    def leave(self) -> None:
        """See Host."""
        self._host.leave()


def free_bytes() -> dict[str, int]:
    """Free memory (of the container, if it has less) and free disk for temporary files."""
    folder = tempfile.gettempdir()
    free = {f"disk at {folder}": shutil.disk_usage(folder).free}
    memory = [left for left in (_left_on_machine(), _left_in_container()) if left is not None]
    return {**free, "memory": min(memory)} if memory else free


def _left_on_machine() -> int | None:
    if not _MEMINFO.exists():
        return None  # not Linux
    fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) << 10


def _left_in_container() -> int | None:
    """Under a cgroup (v2) with a limit; page cache that can be reclaimed counts as free, as in MemAvailable."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit reads `max`
        return None
    return limit - used + int(stat["inactive_file"])
