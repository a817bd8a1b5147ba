"""Runs fednc's ClientApp in the link: builds its context and loads its data before round 1."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict
from flwr.app.user_config import UserConfigValue

from fednc.client.app.resident_run import Resident, forget, resident, succeed
from fednc.common import flower_adapter
from fednc.common.config.run import parse_run_json
from fednc.common.tasks.data_manifest import DataManifest, make_manifest, pseudonym_of
from fednc.protos import federation_pb2 as pb

log = logging.getLogger("fednc.client")


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """A client's own settings.

    Attributes:
        allowed_tasks: names of the tasks that it runs; empty: all that are installed.
        min_sum_examples: the fewest examples in a class sum that it sends; a run can raise this, not lower it.
        min_data_sum_examples: the same for the sums of the data before round 1; None: `min_sum_examples`.
        min_batch: the fewest examples in a batch, also in the last one of an epoch.
        manifest: whether to tell the server what `make_manifest` says about the data.
        manifest_key: for its fingerprint; empty: none. named: whether the history of models may name this client.
        state: folder for what must survive a restart of the client; empty: nothing survives.
        unnamed: ask the server not to list this client's own metrics by name.
        secret: if set, the held-out examples and the order of batches derive from it, so that no server knows or
            chooses them.
    """

    name: str
    data: str
    device: str = "auto"
    val_share: float = 0.1
    allowed_tasks: tuple[str, ...] = ()
    min_sum_examples: int = 0
    min_data_sum_examples: int | None = None
    min_batch: int = 0
    secret: str = ""
    manifest: bool = False
    manifest_key: bytes = b""
    named: bool = True
    state: str = ""
    unnamed: bool = False


class AppHost:
    """fednc's own app in the link."""

    def __init__(self, config: ClientConfig, app: Callable[[Message, Context], Message]) -> None:
        self._config, self._app = config, app
        self._context: Context | None = None
        self._having: list[int] = []

    def prepare(self, welcome: pb.Welcome) -> pb.Declaration:
        """Load task, model and data of the run. Raises ConfigError, DataError."""
        run = parse_run_json(welcome.run_json, source="the server's run file (is its fednc newer than this one?)")
        before, self._context = self._context, self._make_context(welcome)
        here = resident(self._context, run) if before is None else succeed(before, self._context, run)
        self._having = here.train.having_K.tolist()
        return pb.Declaration(
            examples=here.train.examples,
            held_out=here.held_out.examples,
            class_counts=here.train.count_K.tolist(),
            device=str(here.device),
            pid=os.getpid(),
            manifest=self._manifest(here),
            holdings=here.task.holdings(here.train),
        )

    def _manifest(self, here: Resident) -> str:
        """What the owner lets the server know about the data; "" if an error of the task prevents it."""
        key, named = self._config.manifest_key, self._config.named
        if not self._config.manifest:
            return "" if named else DataManifest(pseudonym=pseudonym_of(key)).to_text()
        try:
            made = make_manifest(here.train, here.held_out, key, named=named)
        except Exception:  # a task's own code; the run does not depend on it
            log.exception("no data manifest could be made")
            return ""
        return made.to_text()

    def _make_context(self, welcome: pb.Welcome) -> Context:
        settings: dict[str, UserConfigValue] = {
            "name": self._config.name,
            "data": self._config.data,
            "device": self._config.device,
            "val-share": self._config.val_share,
            "allowed-tasks": " ".join(self._config.allowed_tasks),
            "min-sum-examples": self._config.min_sum_examples,
            "min-batch": self._config.min_batch,
            "secret": self._config.secret,
            "state": self._config.state,
        }
        if self._config.min_data_sum_examples is not None:
            settings["min-data-sum-examples"] = self._config.min_data_sum_examples
        if self._config.unnamed:
            settings["unnamed"] = True
        if welcome.HasField("part"):
            settings |= {"partition-id": welcome.part.index, "num-partitions": welcome.part.of}
        return Context(
            run_id=flower_adapter.run_number(welcome.run_id),
            node_id=welcome.node_id,
            node_config=settings,
            state=RecordDict(),
            run_config={},
        )

    def examples_having(self) -> Sequence[int]:
        """See Host."""
        return self._having

    def work(self, message: Message) -> Message:
        """Answer one instruction."""
        return self._app(message, self.context)

    @property
    def context(self) -> Context:
        """Of the run that is loaded."""
        assert self._context is not None
        return self._context

    def leave(self) -> None:
        """Unload the run."""
        if self._context is not None:
            forget(self._context)
            self._context = None
