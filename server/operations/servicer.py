"""The gRPC face for operators: how the run stands, and the few things that may be asked of it.

Thin on purpose. The gate has settled that the caller is an operator; `server/rounds/control.py` and
`server/access/bans.py` do the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from fednc.common.errors import ConfigError
from fednc.common.files import remedy
from fednc.protos import operator_pb2 as pb
from fednc.protos import operator_pb2_grpc as rpc
from fednc.server.access.interceptor import CALLER
from fednc.server.link.federation import Federation
from fednc.server.operations.status import status_of
from fednc.server.rounds.control import RunControl
from fednc.server.storage.events import OperatorCommand

Context = grpc.aio.ServicerContext[Any, Any]
SERVICE = pb.DESCRIPTOR.services_by_name["Operator"].full_name
_NAMED = 20  # names in a reason
_EVERY_S = (0.2, 1.0, 60.0)  # least, default and greatest time between two statuses of Watch


class OperatorServicer(rpc.OperatorServicer):
    """Serves the operators of one federation."""

    def __init__(self, federation: Federation, control: RunControl) -> None:
        self._federation, self._control = federation, control

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.RunStatus:
        """See operator.proto."""
        del request, context
        return status_of(self._federation, self._control)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.RunStatus]:
        """See operator.proto."""
        del context
        least, default, greatest = _EVERY_S
        every_s = min(greatest, max(least, request.every_s or default))  # in this order NaN ends as `least`
        while True:
            status = status_of(self._federation, self._control)
            yield status
            if status.over:
                return
            await self._sleep(every_s)

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not beyond the end of the run: the server gives open calls little time then."""
        wake = asyncio.get_running_loop().time() + seconds
        while not self._federation.over and asyncio.get_running_loop().time() < wake:
            await asyncio.sleep(_EVERY_S[0])

    async def Control(self, request: pb.ControlRequest, context: Context) -> pb.RunStatus:
        """See operator.proto."""
        if self._federation.over:
            reason = f"the run is over already: {self._federation.over.reason}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
        command = request.WhichOneof("command")
        if command is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no command that this server knows")
        try:
            if command == "drop":
                await self._drop(request.drop.node, context)
            elif command == "readmit":
                await self._readmit(request.readmit.node, context)
            elif command == "next_session":
                await self._next_session(tuple(request.next_session.classes), context)
            else:
                self._pull(command)
        except OSError as e:
            reason = f"done, but a restart will forget it: {e.strerror}; {remedy(e)}"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        return status_of(self._federation, self._control)

    def _pull(self, command: str) -> None:
        control, who = self._control, _caller()
        if command == "stop":
            control.stopping = True
            text = f"{who} stops the run: no round after the one under way"
        else:
            control.paused = command == "pause"
            text = f"{who} pauses the run: the next round waits" if control.paused else f"{who} lets the run go on"
        self._federation.events.emit(OperatorCommand(text=text, command=command, operator=who))

    async def _drop(self, name: str, context: Context) -> None:
        node = self._federation.roster.by_name(name)
        if node is None:
            known = [each.name for each in self._federation.roster.nodes()]
            reason = f"no node {name!r:.80} was ever here; there were: {_some(known)}"
            await context.abort(grpc.StatusCode.NOT_FOUND, reason)
        self._federation.door.drop(node, f"dropped by {_caller()}")

    async def _readmit(self, name: str, context: Context) -> None:
        door = self._federation.door
        if not door.readmit(name, _caller()):
            out = [*door.dropped, *door.quarantined]
            reason = f"{name!r:.80} is not shut out; those who are: {_some(out)}"
            await context.abort(grpc.StatusCode.NOT_FOUND, reason)

    async def _next_session(self, names: tuple[str, ...], context: Context) -> None:
        control, who = self._control, _caller()
        if control.waiting_session is None or control.started is not None:
            where = f"session {control.session} is under way" if control.session else "the beginning is under way"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"no session waits for an operator: {where}")
        try:
            control.check_session(names)
        except ConfigError as e:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        text = f"{who} starts session {control.waiting_session}"
        self._federation.events.emit(
            OperatorCommand(text=text, command="next_session", operator=who, classes=names)
        )
        control.started = names


def _some(names: list[str]) -> str:
    """The first names, of what may be ten thousand: a status's text has to fit into a header."""
    shown = ", ".join(names[:_NAMED]) or "nobody"
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def _caller() -> str:
    holder = CALLER.get().holder
    return str(holder) if holder else "an operator"
