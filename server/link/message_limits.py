"""Limits on what a client may send: a bound on the size, count or length of every field of every call.

Checked by the servicer before anything else is done. Independent of the run: what a run expects is in
`reply_schema.py`. Every limit is far beyond what an honest client sends.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from fednc.common.errors import ProtocolError
from fednc.common.peer_text import LONG_TEXT, SHORT_TEXT, is_plain
from fednc.common.tasks.data_manifest import MOST_BYTES
from fednc.common.wire import records
from fednc.common.wire.checksum import FINGERPRINT_BYTES
from fednc.common.wire.messages import MAX_EXAMPLES
from fednc.protos import federation_pb2 as pb

NAME_LENGTH = 64
INSTALLED = 1000  # tasks or methods
CLASSES = 1 << 12  # if the run does not say how many there are; every declaration logs its counts
ID_BYTES = 32
BLOBS = 1 << 16  # per download
RECORDS = 64
ARRAYS = 1 << 14  # per reply, like ENTRIES: checking one header must not delay the other clients
DIMENSIONS = 32
ENTRIES = 1 << 12
LIST_VALUES = 1 << 18
DECLARATIONS = 1000  # per attendance; a client declares again when its owner pauses or resumes it
COUNT = 1 << 53  # steps and sizes: the largest integers that floats represent exactly


class InvalidError(ProtocolError):
    """A message that no honest client sends: the field and what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


def require(field: str, holds: bool, problem: str) -> None:
    """Raises InvalidError unless `holds` is true."""
    if not holds:
        raise InvalidError(field, problem)


def check_attend(request: pb.AttendRequest) -> None:
    """Raises InvalidError."""
    name = request.name
    require("name", 0 < len(name) <= NAME_LENGTH and name.isprintable(), "must be 1 to 64 printable characters")
    _check_text("software", request.software, SHORT_TEXT)
    _check_text("app", request.app, LONG_TEXT)
    for field in ("tasks", "methods"):
        values = getattr(request, field)
        require(field, len(values) <= INSTALLED, f"{len(values)} entries, at most {INSTALLED} are allowed")
        for value in values:
            _check_text(field, value, SHORT_TEXT)
    require("instance", len(request.instance) <= ID_BYTES, "longer than 32 bytes")
    part = request.part
    fits = not request.HasField("part") or part.index < part.of
    require("part", fits, f"part {part.index} of {part.of}; parts are counted from 0")


def check_declaration(
    declaration: pb.Declaration,
    label_space: int | None,
    members_per_example: int = 1,
    parts: Collection[str] = (),
) -> None:
    """Raises InvalidError. `label_space` is None if the run has none; for the other two see `Task`."""
    for field in ("examples", "held_out"):
        value = getattr(declaration, field)
        require(field, value <= MAX_EXAMPLES, f"{value} examples, at most {MAX_EXAMPLES} are allowed")
    counts = declaration.class_counts
    most = CLASSES if label_space is None else label_space
    require("class_counts", len(counts) <= most, f"{len(counts)} classes, but the run has {most}")
    fits = sum(counts) <= declaration.examples * members_per_example
    require("class_counts", fits, f"they add up to more than {declaration.examples} examples can have")
    _check_text("device", declaration.device, SHORT_TEXT)
    _check_text("problem", declaration.problem, LONG_TEXT)
    _check_text("run_id", declaration.run_id, LONG_TEXT)
    require("pid", declaration.pid <= 1 << 22, f"{declaration.pid} is not a process id")
    _check_text("manifest", declaration.manifest, MOST_BYTES)
    for name, count in declaration.holdings.items():
        require("holdings", name in parts, f"{name!r:.80} is no part of the task")
        require("holdings", count <= declaration.examples, f"{count} of {declaration.examples} examples")
    require("standing", declaration.standing in pb.Declaration.Standing.values(), "unknown value")


def check_id(work_id: pb.AssignmentId, node_id: int) -> None:
    """Raises InvalidError."""
    require("id", work_id.node_id == node_id, "the work belongs to another node")


def check_download(request: pb.DownloadRequest) -> None:
    """Raises InvalidError."""
    digests = request.digests
    require("digests", len(digests) <= BLOBS, f"{len(digests)} blobs at once, at most {BLOBS}")
    require("digests", all(len(digest) == FINGERPRINT_BYTES for digest in digests), "a digest has 16 bytes")
    require("digests", len(set(digests)) == len(digests), "a blob is requested twice")


def check_progress(progress: pb.Progress, node_id: int) -> None:
    """Raises InvalidError."""
    check_id(progress.id, node_id)
    require("step", progress.step <= COUNT, f"step {progress.step}")
    require("steps", progress.steps <= COUNT, f"{progress.steps} steps")
    speed = progress.examples_per_s
    require("examples_per_s", math.isfinite(speed) and speed >= 0, f"{speed} examples per second")
    used = progress.device_memory_bytes
    require("device_memory_bytes", used <= COUNT, f"{used} bytes of device memory")


def check_header(header: pb.UploadHeader, most_bytes: int) -> None:
    """Raises InvalidError. `most_bytes` bounds the upload."""
    require("upload_id", 8 <= len(header.upload_id) <= ID_BYTES, f"{len(header.upload_id)} bytes, not 8 to 32")
    if header.HasField("failure"):
        require("manifest", not header.manifest.records, "a failure has no content")
        _check_text("failure.kind", header.failure.kind, SHORT_TEXT)
        _check_text("failure.reason", header.failure.reason, LONG_TEXT)
        require("failure.code", 0 <= header.failure.code < 1000, f"{header.failure.code}")
    _check_manifest(header.manifest)
    size = records.bulk_bytes(header.manifest)
    require("manifest.size", size <= most_bytes, f"an upload of {size} bytes, at most {most_bytes} are accepted")


def _check_manifest(manifest: pb.Manifest) -> None:
    given = manifest.records
    require("manifest.records", len(given) <= RECORDS, f"{len(given)} records, at most {RECORDS}")
    require("manifest.records", len({r.name for r in given}) == len(given), "a record occurs twice")
    arrays = sum(len(record.arrays.items) for record in given)
    require("manifest.arrays", arrays <= ARRAYS, f"{arrays} arrays, at most {ARRAYS}")
    for meta in records.metas_of(manifest):
        _check_array(meta)
    entries = sum(len(record.metrics.entries) + len(record.config.entries) for record in given)
    require("manifest.values", entries <= ENTRIES, f"{entries} values, at most {ENTRIES}")
    for record in given:
        _check_text("manifest.records", record.name, SHORT_TEXT)
        require("manifest.records", record.WhichOneof("kind") is not None, "a record has no kind")
        _check_values(record.metrics.entries if record.HasField("metrics") else record.config.entries)


def _check_array(meta: pb.ArrayMeta) -> None:
    _check_text("manifest.arrays", meta.key, LONG_TEXT)
    _check_text("manifest.arrays", meta.dtype, SHORT_TEXT)
    _check_text("manifest.arrays", meta.stype, SHORT_TEXT)
    require(
        "manifest.arrays", len(meta.shape) <= DIMENSIONS, f"{len(meta.shape)} dimensions, at most {DIMENSIONS}"
    )
    require("manifest.arrays", math.prod(meta.shape) <= COUNT, "a shape with too many values")
    require("manifest.arrays", len(meta.digest) in (0, FINGERPRINT_BYTES), "a digest has 16 bytes")


def _check_values(entries: Iterable[pb.Entry]) -> None:
    entries = list(entries)
    require("manifest.values", len({entry.key for entry in entries}) == len(entries), "a value occurs twice")
    for entry in entries:
        _check_text("manifest.values", entry.key, SHORT_TEXT)
        filled = [len(values) for _, values in entry.list.ListFields()]
        require("manifest.values", len(filled) <= 1, "a list has values of more than one type")
        require("manifest.values", sum(filled) <= LIST_VALUES, f"a list of {sum(filled)} values")
        one = entry.HasField("list") != (entry.scalar.WhichOneof("value") is not None)
        require("manifest.values", one, f"{entry.key!r} must have exactly one value")


def _check_text(field: str, text: str, most: int) -> None:
    require(field, len(text) <= most, f"{len(text)} characters, at most {most}")
    require(field, is_plain(text), "contains control characters")
