"""gRPC's log: a call that the server cancelled is not logged as an error; any other exception is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fednc.server.cancelled_calls import GRPC_LOG, _is_worth_logging, ignore_cancelled_calls


class Failing(health_pb2_grpc.HealthServicer):
    async def Check(self, request: Any, context: Any) -> Any:
        raise ValueError("a fault of ours")


async def call(*, cancels: bool) -> None:
    """One call to a servicer that fails; cancelled before it begins, or not."""
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(Failing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    loop = asyncio.get_running_loop()

    def made(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **rest: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=loop, **rest)
        if cancels and "_handle_exceptions" in getattr(work, "__qualname__", ""):
            task.cancel()
        return task

    loop.set_task_factory(made)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
    loop.set_task_factory(None)
    await server.stop(0)


@pytest.fixture(autouse=True)
def without_filter() -> None:
    logging.getLogger(GRPC_LOG).removeFilter(_is_worth_logging)


@pytest.mark.filterwarnings("ignore:coroutine '_handle_rpc' was never awaited:RuntimeWarning")
def test_only_what_the_server_cancelled_itself_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def errors(*, cancels: bool) -> list[str]:
        caplog.clear()
        asyncio.run(call(cancels=cancels))
        return [record.getMessage() for record in caplog.records if record.name == GRPC_LOG]

    assert "not handled by _handle_exceptions" in errors(cancels=True)[0], "gRPC does not log it any more"
    ignore_cancelled_calls()
    ignore_cancelled_calls()
    assert errors(cancels=True) == []
    assert any("ValueError" in text for text in errors(cancels=False))


def test_another_exception_with_the_same_words_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ignore_cancelled_calls()
    words = "Exception not handled by _handle_exceptions in servicer method [x]"
    logger = logging.getLogger(GRPC_LOG)
    logger.error(words, exc_info=ValueError("a fault of ours"))
    logger.error(words, exc_info=asyncio.CancelledError())
    logger.error("another message", exc_info=asyncio.CancelledError())
    assert [record.msg for record in caplog.records] == [words, "another message"]
