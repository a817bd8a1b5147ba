"""Our messages of the protocol have the fields of other people's: same numbers, names, types."""

from __future__ import annotations

from typing import Any

import pytest

from fednc.protos import open_inference_pb2 as ours

theirs = pytest.importorskip("tritonclient.grpc.service_pb2")
# tritonclient has an older version of the protocol, in which a model has no properties.
LATER = {("ModelMetadataResponse", "properties")}


def fields(message: Any) -> dict[str, tuple[Any, ...]]:
    found = {}
    for field in message.fields:
        kind = field.message_type.name if field.message_type is not None else ""
        found[field.name] = (field.number, field.type, field.is_repeated, kind)
    return found


def all_messages(messages: Any) -> dict[str, Any]:
    found = {}
    for message in messages:
        found[message.full_name.partition(".")[2].removeprefix("inference.")] = message
        found |= all_messages(message.nested_types)
    return found


def test_every_field_is_the_same() -> None:
    mine = all_messages(ours.DESCRIPTOR.message_types_by_name.values())
    others = all_messages(theirs.DESCRIPTOR.message_types_by_name.values())
    assert len(mine) > 20
    for name, message in mine.items():
        if name == "ModelMetadataResponse.PropertiesEntry":
            continue
        for field, found in fields(message).items():
            if (name, field) not in LATER:
                assert found == fields(others[name])[field], f"{name}.{field}"
