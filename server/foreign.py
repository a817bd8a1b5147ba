"""Runs any Flower ServerApp over our link: `fednc server --app DIR`. Called by the command.

The app sees Flower's own grid: lists, plain bytes, message ids. Nothing of what it does is checked or kept; a
restarted server starts it from the beginning.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.serverapp import ServerApp

from fednc.common import flower, records
from fednc.common.config import RunConfig
from fednc.common.errors import ConfigError, RunFailedError
from fednc.common.files import write_atomically
from fednc.common.flower import AppFolder
from fednc.protos import federation_pb2 as pb
from fednc.server.events import EventLog
from fednc.server.federation import Federation
from fednc.server.grid import LinkGrid
from fednc.server.roster import Node
from fednc.server.serve import serve


class AppFederation(Federation):
    """The link of a run whose app is not ours: clients run the same one and get its configuration."""

    def __init__(
        self, run_id: str, run: RunConfig, spool: Path, events: EventLog, app: AppFolder, config: UserConfig
    ) -> None:
        super().__init__(run_id, run, spool, events)
        self.app, self._config = app.id, config

    def _welcome(self, node: Node) -> pb.Welcome:
        welcome = super()._welcome(node)
        welcome.run_json = json.dumps(self._config)
        return welcome


class AppGrid(LinkGrid):
    """The link with the manners of Flower's own grid, which foreign apps are used to."""

    def ready(self) -> list[Node]:
        """Nodes that are ready, by name. Raises RunFailedError once the run was ended: apps wait for ever."""
        if self.federation.over:
            raise RunFailedError(f"the run was ended: {self.federation.over.reason}")
        return super().ready()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send without waiting; each message gets the id that its reply will name."""
        messages = list(messages)
        ids = super().push_messages(messages)
        for message, message_id in zip(messages, ids, strict=True):
            flower.stamp(message, message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that are there by now."""
        return [_as_stock(message) for message in super().pull_messages(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:  # type: ignore[override]
        """All replies that arrive within `timeout` seconds; the other nodes are told to stop.

        By node and not by arrival, so that a strategy that adds floats up gives the same bits again.
        """
        replies = [_as_stock(message) for message in super().send_and_receive(messages, timeout=timeout)]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)


def _as_stock(message: Message) -> Message:
    """With `bytes` where the link has views of its files."""
    if message.has_content():
        for array in records.arrays_of(message.content):
            array.data = bytes(array.data)
    return message


def settings_for(app: AppFolder, run: RunConfig) -> RunConfig:
    """The run's [server] and [rounds] under the app's name."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", app.name).strip("._-")[:64] or "app"
    return run.model_copy(update={"name": name, "split": None})


async def run_app(
    app: AppFolder, overrides: list[str], run: RunConfig, folder: Path, events: EventLog
) -> dict[str, Any]:
    """Serve the ServerApp in `app` to its end; what `summary.json` in `folder` says.

    Raises:
        AddressError, ConfigError
        RunFailedError: the ServerApp raised.
    """
    started, config = time.monotonic(), app.run_config(overrides)
    server_app = app.load("serverapp")
    if not isinstance(server_app, ServerApp):
        raise ConfigError(f"the serverapp of {app.path} is a {type(server_app).__name__}, not a ServerApp")
    run_id = f"{folder.name}-{secrets.token_hex(4)}"  # the app starts from the beginning, so it is another run
    federation = AppFederation(run_id, run, folder / "spool", events, app, config)
    federation.door.keep_in(folder)
    work = _call(server_app, federation.run_id, config)
    await serve(federation, work, address=run.server.listen, grid_type=AppGrid)
    bytes_up, bytes_down = federation.traffic()
    summary = {
        "run": federation.run_id,
        "app": app.id,
        "run_config": config,
        "duration_s": round(time.monotonic() - started, 3),
        "bytes_up": bytes_up,
        "bytes_down": bytes_down,
        "clients": [{"name": node.name, "pid": node.pid} for node in federation.roster.nodes()],
    }
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2).encode())
    shutil.rmtree(folder / "spool", ignore_errors=True)
    events.emit("done", f"run {folder.name} is done; files in {folder}", folder=str(folder))
    return summary


def _call(server_app: ServerApp, run_id: str, config: UserConfig) -> Callable[[AppGrid], None]:
    context = Context(
        run_id=flower.run_number(run_id),
        node_id=flower.SERVER_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=config,
    )

    def work(grid: AppGrid) -> None:
        try:
            server_app(grid, context)
        except (Exception, SystemExit) as e:
            logging.getLogger("fednc.app").exception("the ServerApp failed")
            raise RunFailedError(f"the ServerApp raised {type(e).__name__}: {e}") from e

    return work
