"""All code that uses more than Flower's public API. When flwr changes, only this file has to.

Used by the grid (server), the link (client) and the tests. Flower's time-to-live of a message depends on the wall
clock. We never use it, so messages get a time-to-live on arrival that cannot run out.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from flwr.app import Array, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.app.user_config import UserConfig
from flwr.common.config import get_fused_config_from_dir, get_project_config, parse_config_args
from flwr.common.constant import SType
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.server import Server
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fednc.common.config.run import RunConfig
from fednc.common.errors import ConfigError
from fednc.common.wire.records import ContentError

SERVER_NODE_ID = 1  # as on a stock SuperLink
# Flower's own error codes, so that other people's strategies understand them.
APP_FAILED, MESSAGE_UNKNOWN, REPLY_REJECTED, NODE_LOST = 2, 3, 4, 5
APP_ERROR = "AppError"  # kind of a failure that an app returned itself: only its code and reason are reported
# Kinds whose reason is sent: the app's own error message, and why one of its records cannot be sent.
TELLING = frozenset({APP_ERROR, ContentError.__name__})
_NO_CODE = ("__pycache__", "build", "dist", "node_modules", "site-packages")
_FOREVER_S = 10.0 * 365 * 24 * 3600


def node_id(name: str) -> int:
    """The first 63 bits of sha256(name): never changes, and is never 0 in practice."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def run_number(run_id: str) -> int:
    """The integer that Flower wants as run id; our ids are readable strings."""
    return node_id(run_id)


def adopt_identity(run_id: str, node: int = SERVER_NODE_ID) -> None:
    """Let code in this process create Flower messages without a SuperLink or a SuperNode."""
    TaskIdentity.run_id = run_number(run_id)
    TaskIdentity.node_id = node
    TaskIdentity.task_id = 0


def instruction(content: RecordDict, *, run_id: str, dst: int, message_type: str, group_id: str) -> Message:
    """An instruction from the server as a Flower message, for a client's app."""
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
    """A node's answer as a Flower message, for a strategy."""
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


class RunGrid(Grid):
    """The parts of Flower's grid interface that are the same for every grid that serves one known run."""

    def __init__(self, run_id: str) -> None:
        self.enter(run_id)

    def enter(self, run_id: str) -> None:
        """Serve this run from now on."""
        self.run_id, self._run = run_id, empty_run(run_id)
        adopt_identity(run_id)

    def set_run(self, run: Run) -> None:
        """Replace Flower's record of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's record of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """An instruction to one node; `ttl` is ignored, see the top of this file."""
        del ttl
        return instruction(
            content, run_id=self.run_id, dst=dst_node_id, message_type=message_type, group_id=group_id
        )


class SeriesGrid(RunGrid):
    """A grid that can go on to another run with the clients that it has."""

    @abstractmethod
    def begin_run(self, run_id: str, run: RunConfig) -> None:
        """Go on to this run; returns when the clients are ready for it."""

    @abstractmethod
    def name_of(self, node: int) -> str:
        """The name behind a Flower node id."""

    @abstractmethod
    def traffic(self) -> tuple[int, int]:
        """Bytes up, bytes down so far, in all runs."""


def stamp(message: Message, message_id: str) -> None:
    """Give a message the id that replies refer to."""
    message.metadata.__dict__["_message_id"] = message_id


def node_info(node: int, name: str, public_key: bytes = b"") -> NodeInfo:
    """Flower's description of a connected node."""
    return NodeInfo(node_id=node, name=name, status="online", public_key=public_key)


def on_model(keep: Callable[[Mapping[str, Array]], None]) -> None:
    """Call `keep` with the final arrays of any strategy in this process, for both of Flower's strategy APIs."""
    start, fit = Strategy.start, Server.fit

    def keeping_start(self: Strategy, *args: Any, **kwargs: Any) -> Result:
        result = start(self, *args, **kwargs)
        keep(dict(result.arrays))
        return result

    def keeping_fit(self: Server, *args: Any, **kwargs: Any) -> Any:
        result, parameters = fit(self, *args, **kwargs), self.parameters
        if parameters.tensor_type == SType.NUMPY:
            tensors = map(np.load, map(io.BytesIO, parameters.tensors))
            keep({str(index): Array(np.asarray(tensor)) for index, tensor in enumerate(tensors)})
        return result

    Strategy.start, Server.fit = keeping_start, keeping_fit  # type: ignore[method-assign]


# ---- folders with a Flower app -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AppFolder:
    """A folder with a Flower app, as its pyproject.toml describes it."""

    path: Path
    name: str
    version: str
    components: Mapping[str, str]  # `serverapp`, `clientapp`: module:attribute

    @property
    def id(self) -> str:
        """Name and version; server and clients compare them to see that they run the same app."""
        return f"{self.name}/{self.version}"

    @property
    def code(self) -> str:
        """Fingerprint of the app's Python files; server and clients compare it to check that they run the same."""
        digest = hashlib.sha256()
        for path in sorted(_python_files(self.path)):
            text = path.read_bytes().replace(b"\r\n", b"\n")  # version control may change line ends
            digest.update(b"%s\0%d\0%s" % (str(path.relative_to(self.path)).encode(), len(text), text))
        return digest.hexdigest()

    def load(self, component: str) -> Any:
        """Import the ServerApp or ClientApp. The app's folder comes first in this process's module search path.

        Raises:
            ConfigError: pyproject.toml does not name it, it does not exist, or its import fails.
        """
        reference = self.components.get(component, "")
        try:
            return load_app(reference, ConfigError, self.path)
        except ConfigError as e:
            raise ConfigError(f"the app in {self.path} has no {component} {reference!r}: {e}") from e
        except Exception as e:  # the app's own modules may raise anything
            problem = f"{type(e).__name__}: {e}"
            raise ConfigError(f"{component} {reference!r} of {self.path} cannot be imported: {problem}") from e

    def run_config(self, overrides: Sequence[str]) -> UserConfig:
        """The app's configuration with overrides as `key=value`. Raises ConfigError, also for unknown keys."""
        try:
            return get_fused_config_from_dir(self.path, parse_pairs(overrides))
        except ValueError as e:
            raise ConfigError(f"{e}; only keys of [tool.flwr.app.config] in {self.path} can be set") from e


def _python_files(folder: Path) -> Iterator[Path]:
    """The Python files that Flower would bundle: not hidden, installed or built ones."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and name not in _NO_CODE and not (here / name / "pyvenv.cfg").exists()
        ]
        yield from (here / name for name in files if name.endswith(".py") and (here / name).is_file())


def read_app(folder: Path) -> AppFolder:
    """The Flower app in `folder`. Raises ConfigError."""
    if folder.is_file():
        raise ConfigError(
            f"{folder} is a file; name the folder with the app's pyproject.toml. "
            "Unpack a .fab bundle first; it is a zip file"
        )
    try:
        project = get_project_config(folder)
        return AppFolder(
            path=folder.resolve(),
            name=project["project"]["name"],
            version=project["project"]["version"],
            components=project["tool"]["flwr"]["app"]["components"],
        )
    except (OSError, ValueError) as e:
        raise ConfigError(f"{folder} does not contain a Flower app: {e}") from e
    except KeyError as e:
        raise ConfigError(f"{folder} does not contain a Flower app: its pyproject.toml has no {e}") from e


def parse_pairs(texts: Sequence[str]) -> UserConfig:
    """Parse `key=value key2="value"` as `flwr run -c` and `--node-config` do. Raises ConfigError."""
    try:
        return parse_config_args(list(texts))
    except (click.ClickException, ValueError, OSError) as e:
        raise ConfigError(f"{' '.join(texts)!r:.80} is not a list of key=value: {e}") from e
