"""Who has fallen silent: a peer that is frozen, or cut off without a word, is lost after `liveness_s`.

Runs beside the server. Every message of a node counts as life; a node with nothing to say says that, four times in
`liveness_s`. Not left to gRPC's pings: on a slow link their answers wait behind the node's own upload.
"""

from __future__ import annotations

import asyncio

from fednc.common.wire.protocol import BULK_FACTOR
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import Node

_TICKS = 20  # per liveness_s
_PATIENCE = 16  # ticks; the rest of liveness_s is for noticing


async def drop_silent(federation: Federation) -> None:
    """Lose every node that is silent for `liveness_s`, or for three times as long in the middle of an upload.

    Silence is counted in ticks of this loop, not in time: a server that was itself frozen has heard nobody.
    """
    while True:
        await asyncio.sleep(federation.run.server.liveness_s / _TICKS)
        for node in federation.roster.nodes():
            if node.is_here:
                node.silent_ticks += 1
                if node.silent_ticks > _PATIENCE and not _is_busy(federation, node):
                    federation.lose(node)


def _is_busy(federation: Federation, node: Node) -> bool:
    return node.silent_ticks <= _TICKS * BULK_FACTOR and federation.is_uploading(node)
