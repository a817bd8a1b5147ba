"""Client processes of the benchmarks: the shipped link, once per client, around the no-op app.

Started by `bench/link.py` and `bench/scale.py`. Tells its peak memory once the run is over.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from flwr.app import Context, Message, RecordDict

from fednc.bench import noop, probe
from fednc.client.link import Link, LinkConfig
from fednc.common import flower
from fednc.protos import federation_pb2 as pb


class NoopHost:
    """The no-op Flower app inside a link."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._context: Context | None = None
        self.worked: list[float] = []  # processor time of this process at each piece of work

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        """Nothing to load."""
        self._context = Context(
            run_id=flower.run_number(welcome.run_id),
            node_id=welcome.node_id,
            node_config={"partition-id": self._index},
            state=RecordDict(),
            run_config={},
        )
        return pb.Declaration(examples=noop.examples(self._index), device="none", pid=os.getpid())

    def work(self, message: Message) -> Message:
        """One call of the app."""
        assert self._context is not None
        self.worked.append(time.process_time())
        return noop.app(message, self._context)

    def leave(self) -> None:
        """Nothing to free."""


async def _attend(server: str, index: int) -> float:
    """Processor time of this process per piece of work."""
    host = NoopHost(index)
    config = LinkConfig(server=server, name=f"bench-{index:04}", once=True)
    await Link(config, host).run()
    return (host.worked[-1] - host.worked[1]) / (len(host.worked) - 2)  # the first two were a greeting and a start


async def main(server: str, first: int, count: int) -> None:
    """Attend as `count` clients from number `first` on, each over its own connection, until the run is over."""
    cpu_s = await asyncio.gather(*(_attend(server, first + i) for i in range(count)))
    probe.tell(peak_rss_mib=probe.peak_rss_mib(), cpu_s=max(cpu_s))


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
