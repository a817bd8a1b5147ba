"""An operator's end of the link: how the run stands, and what may be asked of it. Used by `fednc status`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

import grpc

from fednc.client.link.channel import Credentials, open_channel
from fednc.client.link.connection_errors import as_error
from fednc.client.link.http_proxy import proxy_on_the_way
from fednc.protos import operator_pb2 as pb
from fednc.protos import operator_pb2_grpc as rpc

_ANSWER_S = 10.0
_LIVENESS_S = 5.0


class Lever(StrEnum):
    """What may be asked of a run."""

    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"


@dataclass(frozen=True)
class OperatorLink:
    """Which server to ask, and as whom; None is plaintext, which is served on the server's own machine only.

    Every method raises:
        AddressError: the server does not answer.
        RefusedError: the credential is not one of an operator, or the run is over.
        ConfigError: no such node, or none that is shut out.
    """

    server: str
    credentials: Credentials | None = None
    direct: bool = False  # past any proxy

    async def status(self) -> pb.RunStatus:
        """How the run stands."""
        async with self._stub() as stub:
            status: pb.RunStatus = await stub.Status(pb.StatusRequest(), timeout=_ANSWER_S)
            return status

    async def pull(self, levers: Sequence[Lever]) -> None:
        """Ask for these, in order."""
        requests = {
            Lever.PAUSE: pb.ControlRequest(pause=pb.Pause()),
            Lever.RESUME: pb.ControlRequest(resume=pb.Resume()),
            Lever.STOP: pb.ControlRequest(stop=pb.Stop()),
        }
        async with self._stub() as stub:
            for lever in levers:
                await stub.Control(requests[lever], timeout=_ANSWER_S)

    async def drop(self, nodes: Sequence[str]) -> None:
        """Disconnect these nodes; they are refused until they are readmitted."""
        async with self._stub() as stub:
            for node in nodes:
                await stub.Control(pb.ControlRequest(drop=pb.Drop(node=node)), timeout=_ANSWER_S)

    async def readmit(self, nodes: Sequence[str]) -> None:
        """Let these nodes in again."""
        async with self._stub() as stub:
            for node in nodes:
                await stub.Control(pb.ControlRequest(readmit=pb.Readmit(node=node)), timeout=_ANSWER_S)

    async def next_session(self, classes: Sequence[str]) -> pb.RunStatus:
        """Start the session that waits, with classes of these names where the run file has none.

        Raises also:
            ConfigError: the names clash or find no room.
            RefusedError: no session waits.
        """
        async with self._stub() as stub:
            request = pb.ControlRequest(next_session=pb.NextSession(classes=classes))
            status: pb.RunStatus = await stub.Control(request, timeout=_ANSWER_S)
            return status

    async def watch(self, every_s: float = 0) -> AsyncIterator[pb.RunStatus]:
        """How the run stands, again and again until it is over; 0: as often as the server likes."""
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
