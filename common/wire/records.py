"""Flower `RecordDict` <-> manifest and bytes, the form in which it is sent between server and client.

The manifest (protobuf) holds names, shapes, metrics and configs; the bytes of the arrays follow in the same order.
Called by the grid and the link; knows nothing about rounds or nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from google.protobuf.message import DecodeError, EncodeError

from fednc.common.errors import ProtocolError
from fednc.common.wire.arrays import Buffer, make_array
from fednc.common.wire.checksum import fingerprint
from fednc.protos import federation_pb2 as pb

Kind = TypeVar("Kind", ArrayRecord, MetricRecord, ConfigRecord)


class ContentError(ValueError):
    """Content that cannot be put into a message; says which record, which key, and why."""


_DIGEST = "_fednc_digest"  # stored on the Array together with the hashed bytes, so that they are hashed only once


def digest_of(array: Array) -> bytes:
    """The fingerprint of the array's current bytes, computed only once for the same bytes."""
    data, (hashed, digest) = array.data, array.__dict__.get(_DIGEST, (None, b""))
    if hashed is not data or isinstance(data, bytearray):  # replaced since, or of a type that can change in place
        digest = fingerprint(data)
        array.__dict__[_DIGEST] = (data, digest)
    found: bytes = digest
    return found


def record_of(content: RecordDict, name: str, kind: type[Kind]) -> Kind | None:
    """The record of that name, if it has that type.

    Does not use `content.array_records` and the like: each use of them puts the content into a reference cycle,
    which keeps its arrays in memory until the garbage collector runs.
    """
    record = content.get(name)
    return record if isinstance(record, kind) else None


def to_manifest(content: RecordDict, *, with_digests: bool) -> pb.Manifest:
    """The content without the bytes of its arrays. `with_digests` adds the content address of each array.

    Raises:
        ContentError: a value cannot be put into a message.
    """
    manifest = pb.Manifest()
    for name, record in content.items():
        try:
            _add_record(manifest.records.add(name=name), record, with_digests)
        except (TypeError, ValueError, OverflowError) as e:
            raise ContentError(f"record {name!r}: {e}") from e
    return manifest


def _add_record(entry: pb.Record, record: ArrayRecord | MetricRecord | ConfigRecord, with_digests: bool) -> None:
    if isinstance(record, ArrayRecord):
        entry.arrays.SetInParent()
        for key, array in record.items():
            entry.arrays.items.append(_array_meta(key, array, with_digests))
    elif isinstance(record, MetricRecord):
        entry.metrics.CopyFrom(_to_values(record))
    else:
        entry.config.CopyFrom(_to_values(record))


def encode(manifest: pb.Manifest) -> bytes:
    """The serialised manifest. Raises ContentError if it is too large for protobuf."""
    try:
        return manifest.SerializeToString()
    except (EncodeError, ValueError) as e:
        raise ContentError(f"{manifest.ByteSize()} bytes of names and values outside arrays: {e}") from e


def pack(manifest: pb.Manifest, *, with_digest: bool) -> tuple[pb.Manifest, bytes]:
    """(a small manifest that stands for a large one, the bytes of the large one, to send before its arrays).

    Raises:
        ContentError: it is too large for protobuf.
    """
    data = encode(manifest)
    digest = fingerprint(data) if with_digest else b""
    packed = pb.Packed(size=len(data), digest=digest, array_bytes=bulk_bytes(manifest))
    return pb.Manifest(packed=packed), data


def unpack(manifest: pb.Manifest, data: Buffer) -> pb.Manifest:
    """The manifest that a small one stands for. Raises ProtocolError if the bytes do not match."""
    try:
        inner = pb.Manifest.FromString(bytes(data))
    except DecodeError as e:
        raise ProtocolError(f"a packed manifest of {len(data)} bytes cannot be read: {e}") from e
    if inner.HasField("packed") or bulk_bytes(inner) != manifest.packed.array_bytes:
        raise ProtocolError("the arrays of a packed manifest have another size than it announces")
    return inner


def arrays_of(content: RecordDict) -> Iterator[Array]:
    """All arrays in the manifest's order."""
    for record in content.values():
        if isinstance(record, ArrayRecord):
            yield from record.values()


def metas_of(manifest: pb.Manifest) -> Iterator[pb.ArrayMeta]:
    """Descriptions of all arrays in the manifest's order; a packed manifest has them in its bytes."""
    for record in manifest.records:
        if record.WhichOneof("kind") == "arrays":
            yield from record.arrays.items


def bulk_bytes(manifest: pb.Manifest) -> int:
    """Size of the data that belongs to a manifest: its arrays and, if it is packed, the manifest itself."""
    if manifest.HasField("packed"):
        return manifest.packed.size + manifest.packed.array_bytes
    return sum(meta.size for meta in metas_of(manifest))


def from_manifest(manifest: pb.Manifest, buffers: Iterator[Buffer]) -> RecordDict:
    """The content of a manifest; `buffers` yields the bytes of each array in the manifest's order.

    Raises:
        ProtocolError: duplicate names, a missing kind, or data that Flower's records refuse.
    """
    content = RecordDict()
    for entry in manifest.records:
        if entry.name in content:
            raise ProtocolError(f"record {entry.name!r} occurs twice")
        content[entry.name] = _from_record(entry, buffers)
    return content


def _from_record(entry: pb.Record, buffers: Iterator[Buffer]) -> ArrayRecord | MetricRecord | ConfigRecord:
    kind = entry.WhichOneof("kind")
    if kind == "arrays":
        return _from_arrays(entry, buffers)
    try:
        if kind == "metrics":
            return MetricRecord(_from_values(entry.metrics))
        if kind == "config":
            return ConfigRecord(_from_values(entry.config))
    except (TypeError, ValueError) as e:
        raise ProtocolError(f"record {entry.name!r}: {e}") from e
    raise ProtocolError(f"record {entry.name!r} has no kind")


def _from_arrays(entry: pb.Record, buffers: Iterator[Buffer]) -> ArrayRecord:
    record = ArrayRecord()
    for meta in entry.arrays.items:
        if meta.key in record:
            raise ProtocolError(f"array {meta.key!r} occurs twice in record {entry.name!r}")
        array = make_array(meta.dtype, tuple(meta.shape), meta.stype, next(buffers))
        if meta.digest:
            array.__dict__[_DIGEST] = (array.data, meta.digest)
        record[meta.key] = array
    return record


def _array_meta(key: str, array: Array, with_digest: bool) -> pb.ArrayMeta:
    return pb.ArrayMeta(
        key=key,
        dtype=array.dtype,
        shape=array.shape,
        stype=array.stype,
        size=memoryview(array.data).nbytes,
        digest=digest_of(array) if with_digest else b"",
    )


_KINDS = {
    bool: "bool",
    int: "int",
    float: "double",
    str: "string",
    bytes: "bytes",
}  # bool first, since a bool is also an int
_LIST_FIELDS = {
    "bool": "bools",
    "int": "ints",
    "double": "doubles",
    "string": "strings",
    "bytes": "bytes",
    "uint": "uints",
}
_INT_LIMIT = 1 << 63


def _to_values(record: MetricRecord | ConfigRecord) -> pb.Values:
    """Raises TypeError, ValueError."""
    values = pb.Values()
    for key, value in record.items():
        entry = values.entries.add(key=key)
        try:
            _fill(entry, value)
        except (TypeError, ValueError, OverflowError) as e:
            raise ContentError(f"{key!r}: {e}") from e
    return values


def _fill(entry: pb.Entry, value: Any) -> None:
    if not isinstance(value, list):
        setattr(entry.scalar, _kind_of([value]), value)
        return
    entry.list.SetInParent()
    if value:
        getattr(entry.list, _LIST_FIELDS[_kind_of(value)]).extend(value)


def _kind_of(values: list[Any]) -> str:
    """The field for these values; subclasses such as numpy scalars and enums count too. Raises TypeError."""
    for kind, field in _KINDS.items():
        if all(isinstance(value, kind) for value in values):
            return "uint" if kind is int and any(value >= _INT_LIMIT for value in values) else field
    kinds = ", ".join(sorted({type(value).__name__ for value in values}))
    raise TypeError(
        f"a value of type {kinds} cannot be sent; use bool, int, float, str, bytes or a list of one type"
    )


def _from_values(values: pb.Values) -> dict[str, Any]:
    return {entry.key: _from_entry(entry) for entry in values.entries}


def _from_entry(entry: pb.Entry) -> Any:
    if entry.HasField("list"):
        filled = [list(getattr(entry.list, field)) for field in _LIST_FIELDS.values()]
        return next((items for items in filled if items), [])
    field = entry.scalar.WhichOneof("value")
    if field is None:
        raise ValueError(f"{entry.key!r} has no value")
    return getattr(entry.scalar, field)
