"""Detects silent nodes: one that is frozen or cut off is lost after `liveness_s`.

Runs as a task next to the server. Every message of a node counts; an idle node sends a heartbeat four times per
`liveness_s`. gRPC's own pings do not work for this: on a slow link their answers wait behind the node's upload.
"""

from __future__ import annotations

import asyncio

from fednc.common.wire.protocol import BULK_FACTOR
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import Node

_TICKS = 20  # per liveness_s
_SILENT_TICKS = 16  # until a node counts as silent; the rest of liveness_s is for reacting


async def drop_silent(federation: Federation) -> None:
    """End the attendance of nodes that are silent for `liveness_s`, or three times as long during an upload.

    Silence is counted in ticks of this loop, not in time, so a server that was itself frozen does not lose its
    nodes.
    """
    while True:
        await asyncio.sleep(federation.run.server.liveness_s / _TICKS)
        for node in federation.roster.nodes():
            if node.is_here:
                node.count_silence()
                if node.silent_ticks > _SILENT_TICKS and not _is_busy(federation, node):
                    federation.lose(node)


def _is_busy(federation: Federation, node: Node) -> bool:
    return node.silent_ticks <= _TICKS * BULK_FACTOR and federation.is_uploading(node)
