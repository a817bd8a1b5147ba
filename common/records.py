"""Flower `RecordDict` <-> manifest and bytes: what travels between server and client.

The manifest (protobuf) holds names, shapes, metrics and configs; the bytes of the arrays follow it in the
manifest's order. Called by the grid and the link; knows nothing of rounds or nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fednc.common.arrays import Buffer, make_array
from fednc.common.errors import ProtocolError
from fednc.common.fingerprint import fingerprint
from fednc.protos import federation_pb2 as pb

Kind = TypeVar("Kind", ArrayRecord, MetricRecord, ConfigRecord)

_DIGEST = "_fednc_digest"  # kept on the Array, so that one that is sent twice is hashed once


def digest_of(array: Array) -> bytes:
    """The fingerprint of the array's bytes, computed once per array."""
    if _DIGEST not in array.__dict__:
        array.__dict__[_DIGEST] = fingerprint(array.data)
    found: bytes = array.__dict__[_DIGEST]
    return found


def record_of(content: RecordDict, name: str, kind: type[Kind]) -> Kind | None:
    """The record of that name if it is of that kind.

    Not by `content.array_records` and its like: every use of these ties the content into a reference cycle, and
    its arrays stay in memory until the garbage collector comes by.
    """
    record = content.get(name)
    return record if isinstance(record, kind) else None


def to_manifest(content: RecordDict, *, with_digests: bool) -> pb.Manifest:
    """The content without its bulk. `with_digests` adds the content address of each array."""
    manifest = pb.Manifest()
    for name, record in content.items():
        entry = manifest.records.add(name=name)
        if isinstance(record, ArrayRecord):
            entry.arrays.SetInParent()
            for key, array in record.items():
                entry.arrays.items.append(_array_meta(key, array, with_digests))
        elif isinstance(record, MetricRecord):
            entry.metrics.CopyFrom(_to_values(record))
        else:
            entry.config.CopyFrom(_to_values(record))
    return manifest


def arrays_of(content: RecordDict) -> Iterator[Array]:
    """All arrays in the manifest's order."""
    for record in content.values():
        if isinstance(record, ArrayRecord):
            yield from record.values()


def metas_of(manifest: pb.Manifest) -> Iterator[pb.ArrayMeta]:
    """Descriptions of all arrays in the manifest's order."""
    for record in manifest.records:
        if record.WhichOneof("kind") == "arrays":
            yield from record.arrays.items


def bulk_bytes(manifest: pb.Manifest) -> int:
    """Bytes of array data that belong to a manifest."""
    return sum(meta.size for meta in metas_of(manifest))


def from_manifest(manifest: pb.Manifest, buffers: Iterator[Buffer]) -> RecordDict:
    """The content again; `buffers` yields the bytes of each array in the manifest's order.

    Raises:
        ProtocolError: duplicate names, an unset kind, or data that Flower's records refuse.
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
            array.__dict__[_DIGEST] = meta.digest
        record[meta.key] = array
    return record


def _array_meta(key: str, array: Array, with_digest: bool) -> pb.ArrayMeta:
    return pb.ArrayMeta(
        key=key,
        dtype=array.dtype,
        shape=array.shape,
        stype=array.stype,
        size=len(array.data),
        digest=digest_of(array) if with_digest else b"",
    )


_LIST_FIELD = {bool: "bools", int: "ints", float: "doubles", str: "strings", bytes: "bytes"}
_SCALAR_FIELD = {bool: "bool", int: "int", float: "double", str: "string", bytes: "bytes"}


def _to_values(record: MetricRecord | ConfigRecord) -> pb.Values:
    values = pb.Values()
    for key, value in record.items():
        entry = values.entries.add(key=key)
        if isinstance(value, list):
            entry.list.SetInParent()
            if value:
                getattr(entry.list, _LIST_FIELD[type(value[0])]).extend(value)
        else:
            setattr(entry.scalar, _SCALAR_FIELD[type(value)], value)
    return values


def _from_values(values: pb.Values) -> dict[str, Any]:
    return {entry.key: _from_entry(entry) for entry in values.entries}


def _from_entry(entry: pb.Entry) -> Any:
    if entry.HasField("list"):
        filled = [list(getattr(entry.list, field)) for field in _LIST_FIELD.values()]
        return next((items for items in filled if items), [])
    field = entry.scalar.WhichOneof("value")
    if field is None:
        raise ValueError(f"{entry.key!r} has no value")
    return getattr(entry.scalar, field)
