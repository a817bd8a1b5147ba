"""A class without examples at any client is reported when the clients have joined, over the real link."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from fednc.client.app.flower_app import app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.client.link.link import Link, LinkConfig
from fednc.common.config.run import parse_run
from fednc.server.main import run_server
from fednc.server.storage.event_log import EventLog, read_events
from fednc.server.storage.events import ClassesMissing
from support.heard_events import of_kind
from support.image_files import CLASSES, write_npz

GREY = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize(("labels", "told"), [([0, 2, 2, 0], [["bee"]]), ([0, 1, 2, 0], [])])
def test_a_class_that_no_client_has_is_reported_once(tmp_path, caplog, labels, told):
    data = f"npz:{write_npz(tmp_path / 'a.npz', x_train=GREY, y_train=np.array(labels))}"
    task = {"classes": list(CLASSES), "size": 8, "channels": 1, "width": 8}
    server = {"listen": "127.0.0.1:0"}
    run = parse_run(
        {"task": task, "rounds": {"total": 2, "min_clients": 1}, "frame": {"dim": 8}, "server": server}
    )
    folder = tmp_path / "run"
    folder.mkdir()

    async def both() -> None:
        ports: asyncio.Queue[int] = asyncio.Queue()
        events = EventLog(folder / "events.jsonl")
        serving = asyncio.create_task(
            run_server(run, folder, events, on_listening=lambda _, p: ports.put_nowait(p))
        )
        config = LinkConfig(server=f"127.0.0.1:{await ports.get()}", name="a", once=True)
        host = AppHost(ClientConfig(name="a", data=data, device="cpu", val_share=0), app)
        await asyncio.gather(serving, Link(config, host).run())

    with caplog.at_level(logging.INFO):
        asyncio.run(both())
    told_of = of_kind(ClassesMissing, read_events(folder))
    assert [list(event.classes) for event in told_of] == told
    said_by_the_client = [
        text for text in caplog.messages if "no examples for 1 of the run's classes: 'bee'" in text
    ]
    assert len(said_by_the_client) == len(told)
