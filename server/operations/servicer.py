"""The gRPC service for operators: the status of the run, and the commands in `commands.py`.

The interceptor has already checked that the caller is an operator.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from fednc.common.errors import ConfigError
from fednc.common.files import remedy
from fednc.common.peer_text import one_line
from fednc.common.waiting import Deadline, wait_until_async
from fednc.protos import operator_pb2 as pb
from fednc.protos import operator_pb2_grpc as rpc
from fednc.server.access.interceptor import CALLER
from fednc.server.link.federation import Federation
from fednc.server.operations.commands import COMMANDS, Served, UnknownNodeError
from fednc.server.operations.status import status_of
from fednc.server.rounds.control import RunControl, WrongMomentError

Context = grpc.aio.ServicerContext[Any, Any]
SERVICE = pb.DESCRIPTOR.services_by_name["Operator"].full_name
_NAME = 64  # most characters of a person's name
_EVERY_S = (0.2, 1.0, 60.0)  # shortest, default and longest interval between two statuses of Watch


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
        every_s = min(greatest, max(least, request.every_s or default))  # this order turns NaN into `least`
        while True:
            status = status_of(self._federation, self._control)
            yield status
            if status.over:
                return
            # Stop waiting when the run ends: the server soon cancels calls that are still open.
            await wait_until_async(lambda: self._federation.over, Deadline(every_s), least)

    async def Control(self, request: pb.ControlRequest, context: Context) -> pb.RunStatus:
        """See operator.proto."""
        if self._federation.over:
            reason = f"the run is already over: {self._federation.over.reason}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
        field = request.WhichOneof("command")
        if field is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this server does not know the command")
        command = COMMANDS[field].of_message(getattr(request, field))
        try:
            command.obey(Served(self._federation, self._control, _caller(request.on_behalf_of)))
        except UnknownNodeError as e:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(e))
        except ConfigError as e:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))
        except WrongMomentError as e:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(e))
        except OSError as e:
            reason = f"done, but it will be lost at a restart: {e.strerror}; {remedy(e)}"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
        return status_of(self._federation, self._control)


def _caller(on_behalf_of: str) -> str:
    """Who gives a command; a console adds the person at its other end."""
    holder = CALLER.get().holder
    caller = str(holder) if holder else "an operator"
    return f"{caller} for {one_line(on_behalf_of, _NAME)!r}" if on_behalf_of else caller
