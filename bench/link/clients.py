"""Client processes of the benchmarks: the shipped link, once per client, with the no-op app.

Started by `bench/link/driver.py`. Reports peak memory and processor time when the run is over.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, Message, RecordDict

from fednc.bench import probe
from fednc.bench.link import noop_app
from fednc.bench.link.certificates import name_of
from fednc.client.link.channel import Credentials
from fednc.client.link.link import Link, LinkConfig
from fednc.common import flower_adapter
from fednc.common.process.collector import spare_what_is_loaded
from fednc.common.wire import arrays, update_codec
from fednc.common.wire.records import record_of
from fednc.protos import federation_pb2 as pb


class NoopHost:
    """Runs the no-op Flower app for a link."""

    def __init__(self, index: int, codec_name: str) -> None:
        self._index, self._codec = index, codec_name
        self._context: Context | None = None
        self.worked: list[float] = []  # processor time of this process at each call of `work`

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        """Nothing to load."""
        self._context = Context(
            run_id=flower_adapter.run_number(welcome.run_id),
            node_id=welcome.node_id,
            node_config={"partition-id": self._index},
            state=RecordDict(),
            run_config={},
        )
        return pb.Declaration(examples=noop_app.examples(self._index), device="none", pid=os.getpid())

    def examples_having(self) -> tuple[int, ...]:
        """A task without classes."""
        return ()

    def work(self, message: Message) -> Message:
        """Call the app once."""
        assert self._context is not None
        self.worked.append(time.process_time())
        reply = noop_app.app(message, self._context)
        return self._encoded(message, reply) if self._codec != "fp32" else reply

    def _encoded(self, message: Message, reply: Message) -> Message:
        """The reply as our own client encodes it, without error feedback: the mean of each round is checked."""
        before, after = (record_of(one.content, noop_app.MODEL, ArrayRecord) for one in (message, reply))
        if before and after:
            state, reference = arrays.from_record(after), arrays.from_record(before)
            reply.content[noop_app.MODEL], _ = update_codec.encode_update(state, reference, self._codec, {})
        return reply

    def leave(self) -> None:
        """Nothing to free."""


async def _attend(server: str, index: int, keys: str, codec_name: str) -> float:
    """Processor time of this process per call of `work`."""
    host, name = NoopHost(index, codec_name), name_of(index)
    credentials = Credentials.from_folder(Path(keys, name)) if keys else None
    config = LinkConfig(server=server, name=name, credentials=credentials, once=True)
    await Link(config, host).run()
    return (host.worked[-1] - host.worked[1]) / (
        len(host.worked) - 2
    )  # from round 1 on: the first call is `hello`


async def main(server: str, first: int, count: int, keys: str, codec: str) -> None:
    """Run `count` clients, numbered from `first`, each with its own connection, until the run is over."""
    cpu_s = await asyncio.gather(*(_attend(server, first + i, keys, codec) for i in range(count)))
    probe.tell(peak_rss_mib=probe.peak_rss_mib(), cpu_s=max(cpu_s))


if __name__ == "__main__":
    spare_what_is_loaded()
    asyncio.run(main(**json.loads(sys.argv[1])))
