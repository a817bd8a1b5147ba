"""Nodes at work, for the tests of operators and owners: assignments, and a host that works until told to stop."""

from __future__ import annotations

import threading
import time
from typing import Any

from flwr.app import Message, RecordDict

from fednc.client.link.work_hooks import CURRENT
from fednc.common import flower_adapter
from fednc.common.config.run import RunConfig, parse_run
from fednc.protos import federation_pb2 as pb
from fednc.server.link.assignments import Batch, Content, Work
from fednc.server.link.nodes import Node
from support.local_servers import IdleHost, Serving

PARTS = 12  # clients take only a few of them: small data, quick rounds


def digits_run(**rounds: Any) -> RunConfig:
    return parse_run(
        {
            "task": {"classes": [str(i) for i in range(10)], "model": "cnn", "width": 8, "size": 8, "channels": 1},
            "frame": {"dim": 16},
            "rounds": {"min_clients": 2, "rejoin_s": 0.2, **rounds},
            "split": {"parts": PARTS, "kind": "iid"},
            "evaluate": {"test": "digits"},
            "server": {"listen": "127.0.0.1:0", "keep_checkpoints": 1},
        }
    )


def node_of(server: Serving, name: str) -> Node:
    return next(n for n in server.federation.roster.nodes() if n.name == name)


def hand_out(server: Serving, *names: str) -> Batch:
    """Send these nodes an assignment without content."""
    batch = Batch()
    for name in names:
        node = node_of(server, name)
        work_id = pb.AssignmentId(run_id="run", group_id="1", message_type="train", node_id=node.node_id)
        content = flower_adapter.instruction(
            RecordDict(), run_id="run", dst=node.node_id, message_type="train", group_id="1"
        )
        batch.works.append(Work(work_id, node, content, Content(pb.Manifest()), batch))
    server.federation.dispatch(batch, {})
    return batch


class WorkingHost(IdleHost):
    """Works batch by batch until `done` is set."""

    def __init__(self) -> None:
        self.batches = 0
        self.done = threading.Event()

    def work(self, message: Message) -> Message:
        while not self.done.is_set():
            CURRENT.get().check()
            self.batches += 1
            time.sleep(0.005)
        return Message(RecordDict(), reply_to=message)
