"""Operators' commands: one class for each that operator.proto knows, the same on both sides."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednc.protos import operator_pb2 as pb
from fednc.server.operations.commands import COMMANDS, Command

MESSAGES = {each.name: each for each in pb.ControlRequest.DESCRIPTOR.oneofs_by_name["command"].fields}


def test_there_is_a_class_for_every_command_of_the_protocol() -> None:
    assert COMMANDS.keys() == MESSAGES.keys()
    for name, cls in COMMANDS.items():
        assert [each.name for each in fields(cls)] == [each.name for each in MESSAGES[name].message_type.fields]


@pytest.mark.parametrize("name", sorted(COMMANDS))
@given(data=st.data())
def test_a_command_arrives_as_it_was_sent(data: st.DataObject, name: str) -> None:
    command = data.draw(st.from_type(COMMANDS[name]))
    request = pb.ControlRequest.FromString(command.to_request().SerializeToString())
    assert request.WhichOneof("command") == name
    assert COMMANDS[name].of_message(getattr(request, name)) == command


def test_a_command_cannot_be_left_half_done() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Nothing", (Command,), {}, field="nothing")()
    del COMMANDS["nothing"]


def test_sending_a_command_loads_neither_the_link_nor_the_training() -> None:
    code = "import sys, fednc.server.operations.commands; print({'torch', 'flwr'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
