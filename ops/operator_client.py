"""The operator's client: reads the status of a run and sends commands to it. Used by `fednc status` and others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from fednc.client.link.channel import Credentials, open_channel
from fednc.client.link.connection_errors import as_error
from fednc.client.link.http_proxy import proxy_on_the_way
from fednc.protos import operator_pb2 as pb
from fednc.protos import operator_pb2_grpc as rpc
from fednc.server.operations.commands import Command

_ANSWER_S = 10.0
_LIVENESS_S = 5.0


@dataclass(frozen=True)
class OperatorLink:
    """Which server to ask, with which credentials. None means plaintext, which works only on the server's machine.

    Every method raises:
        AddressError: the server does not answer.
        RefusedError: the credential is not an operator's, the run is over, or the command does not fit right now.
        ConfigError: there is no node of that name, or the class names cannot be used.
    """

    server: str
    credentials: Credentials | None = None
    direct: bool = False  # ignore any proxy

    async def status(self) -> pb.RunStatus:
        """The status of the run."""
        async with self._stub() as stub:
            status: pb.RunStatus = await stub.Status(pb.StatusRequest(), timeout=_ANSWER_S)
            return status

    async def ask(self, command: Command, on_behalf_of: str = "") -> pb.RunStatus:
        """Send a command, possibly for somebody else; return the status after it."""
        request = command.to_request()
        request.on_behalf_of = on_behalf_of
        async with self._stub() as stub:
            status: pb.RunStatus = await stub.Control(request, timeout=_ANSWER_S)
            return status

    async def watch(self, every_s: float = 0) -> AsyncIterator[pb.RunStatus]:
        """The status again and again until the run is over; `every_s` 0 leaves the interval to the server."""
        async with self._stub() as stub:
            async for status in stub.Watch(pb.WatchRequest(every_s=every_s)):
                yield status

    @asynccontextmanager
    async def _stub(self) -> AsyncIterator[rpc.OperatorStub]:
        try:
            async with open_channel(self.server, self.credentials, _LIVENESS_S, direct=self.direct) as channel:
                yield rpc.OperatorStub(channel)
        except grpc.aio.AioRpcError as e:
            proxy = proxy_on_the_way(self.server, direct=self.direct)
            raise as_error(e, self.server, self.credentials, proxy) from e
