"""Everything that reaches below Flower's public API, in one file: when flwr moves, only this page changes.

Used by the grid (server), the link (client) and the tests. Flower's own message time-to-live looks at a wall
clock; ours never does, so messages are stamped on arrival with a span that cannot run out.
"""

from __future__ import annotations

import hashlib
import time

from flwr.app import Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE_ID = 1  # as on a stock SuperLink
_FOREVER_S = 10.0 * 365 * 24 * 3600


def node_id(name: str) -> int:
    """The first 63 bits of sha256(name): stable for ever, never 0 in practice."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def run_number(run_id: str) -> int:
    """Flower wants an integer run id; ours are readable strings."""
    return node_id(run_id)


def adopt_identity(run_id: str) -> None:
    """Let code in this process create Flower instruction messages without a SuperLink."""
    TaskIdentity.run_id = run_number(run_id)
    TaskIdentity.node_id = SERVER_NODE_ID
    TaskIdentity.task_id = 0


def instruction(content: RecordDict, *, run_id: str, dst: int, message_type: str, group_id: str) -> Message:
    """An instruction from the server, as a client's app sees it."""
    metadata = Metadata(
        run_id=run_number(run_id),
        message_id=f"{run_id}/{group_id}/{message_type}/{dst}",
        src_node_id=SERVER_NODE_ID,
        dst_node_id=dst,
        reply_to_message_id="",
        group_id=group_id,
        created_at=time.time(),
        ttl=_FOREVER_S,
        message_type=message_type,
    )
    return Message(metadata=metadata, content=content)  # type: ignore[call-overload, no-any-return]


def reply(to: Message, content: RecordDict | None, error: Error | None) -> Message:
    """A node's answer, as a strategy sees it."""
    metadata = Metadata(
        run_id=to.metadata.run_id,
        message_id="",
        src_node_id=to.metadata.dst_node_id,
        dst_node_id=to.metadata.src_node_id,
        reply_to_message_id=to.metadata.message_id,
        group_id=to.metadata.group_id,
        created_at=time.time(),
        ttl=_FOREVER_S,
        message_type=to.metadata.message_type,
    )
    return Message(metadata=metadata, content=content, error=error)  # type: ignore[call-overload, no-any-return]


def empty_run(run_id: str) -> Run:
    """A Flower `Run` record for apps that ask the grid for one."""
    return Run.create_empty(run_number(run_id))
