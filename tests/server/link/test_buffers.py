"""Memory that arrays share and that is reused, and uploads that stay in memory: none sees another's bytes."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednc.client.link.blob_cache import BlobCache
from fednc.common.files import filesystem_of
from fednc.common.wire import arrays
from fednc.common.wire.checksum import Fingerprint
from fednc.server.link.upload_budget import Intake, Slot
from fednc.server.link.upload_store import FileStore, MemoryStore, SpooledUpload

LARGE = 4 << 20


@given(st.lists(st.integers(0, 300), max_size=20))
def test_arrays_in_one_buffer_do_not_overlap(sizes: list[int]) -> None:
    buffers = arrays.new_buffers(sizes)
    for number, buffer in enumerate(buffers):
        buffer[:] = bytes([number]) * len(buffer)
    assert [bytes(buffer) for buffer in buffers] == [bytes([i]) * size for i, size in enumerate(sizes)]
    addresses = [np.frombuffer(buffer, np.uint8).ctypes.data for buffer in buffers if len(buffer)]
    assert all(address % 16 == 0 for address in addresses), "no tensor of these bytes would be aligned"


@given(st.lists(st.tuples(st.booleans(), st.integers(LARGE, 3 * LARGE)), max_size=8))
def test_memory_is_reused_only_when_nobody_holds_a_part_of_it(steps: list[tuple[bool, int]]) -> None:
    held: list[tuple[int, memoryview]] = []
    for number, (drops, size) in enumerate(steps):
        if drops and held:
            held.pop(0)
        first, last = arrays.new_buffers([size // 2, size - size // 2])
        first[:8] = last[-8:] = number.to_bytes(8, "little")
        held.append((number, last[-8:]))  # a small part keeps the whole alive
        del first, last
        assert [int.from_bytes(part, "little") for _, part in held] == [number for number, _ in held]


def test_large_memory_is_reused_but_not_kept_for_ever() -> None:
    gc.collect()
    [buffer] = arrays.new_buffers([2 * LARGE])
    place = np.frombuffer(buffer, np.uint8).ctypes.data
    del buffer
    [again] = arrays.new_buffers([2 * LARGE - 100])
    assert np.frombuffer(again, np.uint8).ctypes.data == place
    many = [arrays.new_buffers([LARGE + i]) for i in range(5)]
    del many, again
    assert len(arrays._IDLE) <= 2


def test_a_kept_blob_does_not_keep_those_that_came_with_it() -> None:
    cache = BlobCache(remembered_assignments=1)
    frame, model = arrays.new_buffers([1000, LARGE])
    frame[:] = b"f" * 1000
    for digest, data in ((b"frame", frame), (b"model", model)):
        cache.add(digest, data)
    cache.settle([b"frame", b"model"])
    whole = weakref.ref(frame.obj)
    del frame, model, data
    cache.settle([b"frame"])
    assert cache.lacking([b"frame", b"model"]) == [b"model"]
    assert cache[b"frame"] == b"f" * 1000
    assert whole() is None, "a frame holds the memory of a model"


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_both_stores_return_the_bytes_they_got(kind: str, tmp_path: Path) -> None:
    freed: list[int] = []
    store = MemoryStore(lambda: freed.append(1)) if kind == "memory" else FileStore(tmp_path / "upload")
    upload, data = SpooledUpload(store, b"id", 300), bytes(range(256)) + bytes(44)
    for start in range(0, 300, 70):
        upload.append(data[start : start + 70])
    fingerprint = Fingerprint()
    fingerprint.update(data)
    assert upload.is_intact(fingerprint.finish())
    views = upload.take([100, 0, 200])
    assert b"".join(views) == data
    assert all(view.readonly for view in views)
    upload.discard()
    assert not freed, "the bytes are held"
    del views, upload, store
    assert freed == [1] * (kind == "memory"), "the room is given back once"
    assert list(tmp_path.iterdir()) == []


def test_small_uploads_stay_in_memory_up_to_their_part_of_the_budget(tmp_path: Path) -> None:
    async def main() -> None:
        intake = Intake(tmp_path, 8 * 4 * (64 << 10))  # enough for four uploads
        slots = [Slot() for _ in range(6)]
        for number, slot in enumerate(slots):
            await intake.open(slot, bytes([number]), 1000)
        assert len(list(tmp_path.iterdir())) == 2
        intake.drop(slots[0])
        await intake.open(slots[0], b"again", 1000)
        assert len(list(tmp_path.iterdir())) == 2
        for slot in slots:
            intake.drop(slot)
        large = Slot()
        await intake.open(large, b"large", (64 << 10) + 1)
        assert len(list(tmp_path.iterdir())) == 1
        intake.drop(large)
        assert (list(tmp_path.iterdir()), intake.budget.used_bytes) == ([], 0)

    asyncio.run(main())


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no folder in memory")
def test_an_upload_folder_in_memory_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        Intake(Path(folder) / "spool", 1 << 30)
    assert "put it on a disk" in caplog.text
    caplog.clear()
    Intake(tmp_path / "spool", 1 << 30)
    assert bool(caplog.text) == (filesystem_of(tmp_path) in ("tmpfs", "ramfs"))
