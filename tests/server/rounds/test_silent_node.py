"""A node that joins, says it is ready and never answers: rounds do not wait for it every time."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link.link import Link, LinkConfig
from fednc.common.config.run import parse_run
from fednc.protos import federation_pb2 as pb
from fednc.server.link.federation import Federation
from fednc.server.main import run_server
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import Event, NodeAbsent, NodeQuarantined
from support.heard_events import of_kind
from support.local_servers import until
from support.raw_node import attending_by_hand

ROUNDS = 8
DEADLINE_S = 4.0


def test_a_silent_node_is_named_and_costs_a_few_deadlines_in_all(tmp_path: Path) -> None:
    run = parse_run(
        {
            "task": {"classes": [str(digit) for digit in range(10)], "size": 8, "channels": 1, "width": 8},
            "frame": {"dim": 16},
            "rounds": {"total": ROUNDS, "min_clients": 3, "deadline_s": DEADLINE_S},
            "server": {"listen": "127.0.0.1:0"},
        }
    )
    events: list[Event] = []

    async def main() -> list[float]:
        log, found = EventLog(), list[tuple[Federation, int]]()
        log.listen(events.append)
        serving = asyncio.create_task(
            run_server(run, tmp_path, log, on_listening=lambda federation, port: found.append((federation, port)))
        )
        await until(lambda: found)
        federation, port = found[0]
        async with attending_by_hand(federation, port, "silent") as node:
            await node.declare(pb.Declaration(examples=10, device="cpu", class_counts=[1] * 10))
            reports = node.stub.Report(metadata=node.metadata)

            async def stay_alive() -> None:
                while True:
                    await reports.write(pb.Progress())
                    await asyncio.sleep(0.5)

            alive = asyncio.create_task(stay_alive())
            links = [
                Link(
                    LinkConfig(server=f"127.0.0.1:{port}", name=name, once=True),
                    AppHost(ClientConfig(name=name, data="digits", device="cpu"), app),
                )
                for name in ("a", "b", "c")
            ]
            attending = [asyncio.create_task(link.run()) for link in links]
            finished = await serving
            alive.cancel()
            await asyncio.gather(*attending)
        return [record.seconds for record in finished.result.history.rounds]

    seconds = asyncio.run(main())
    absent = of_kind(NodeAbsent, events)
    assert {event.node for event in absent} == {"silent"}
    assert "does not answer" in absent[0].text
    # Asked in rounds 1, 2, 4 and 7; it never announced its examples, so each costs one deadline.
    assert sum(each >= DEADLINE_S for each in seconds) <= 4
    assert sum(each < DEADLINE_S for each in seconds) >= ROUNDS - 4
    assert not of_kind(NodeQuarantined, events)
