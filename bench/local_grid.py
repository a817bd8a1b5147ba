"""Flower's `Grid` with all clients in this process, one after the other. Comparisons and contract tests use it.

Runs the shipped client (`AppHost` around the ClientApp) as the link does, but without the link; both give the same
bits. Must not know strategies or methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict

from fednc.client.app.flower_app import app as fednc_app
from fednc.client.app.host import AppHost, ClientConfig
from fednc.common import flower_adapter
from fednc.common.config.run import RunConfig
from fednc.common.wire import records
from fednc.common.wire.arrays import Buffer
from fednc.common.wire.failure_reasons import failure_of
from fednc.protos import federation_pb2 as pb

_APP_FAILED = 2  # Flower's own code, as the link reports it


class LocalGrid(flower_adapter.SeriesGrid):
    """The grid of one run, or of several after one another.

    If a run has a simulated split, client i has part i, counted from the first one's.

    Server and clients share no arrays: in both directions every content is serialised into a manifest and
    read-only bytes, then built again from them.
    """

    def __init__(
        self,
        run: RunConfig,
        clients: Sequence[ClientConfig],
        app: Callable[[Message, Context], Message] = fednc_app,
        run_id: str = "",
        first_part: int = 0,
    ) -> None:
        """Load every client's data and model. `first_part`: the part of the first client.

        Raises:
            ConfigError, DataError: a client cannot take part in the run.
        """
        super().__init__(run_id or f"{run.name}-{uuid4().hex}")
        self._names = {flower_adapter.node_id(client.name): client.name for client in clients}
        self._hosts = {flower_adapter.node_id(client.name): AppHost(client, app) for client in clients}
        self.manifests: dict[str, str] = {}  # by client; see `ClientConfig.manifest`
        self._bytes_up = self._bytes_down = 0
        self._pushed: dict[str, Iterator[Message]] = {}
        self._first_part = first_part
        self.begin_run(self.run_id, run)

    def begin_run(self, run_id: str, run: RunConfig) -> None:
        """Go on to this run. Clients keep their data loaded if it is the same. Raises ConfigError, DataError."""
        self.enter(run_id)
        self._pushed = {}
        for index, (node, host) in enumerate(self._hosts.items(), self._first_part):
            declared = host.prepare(self._welcome(node, run, index))
            self.manifests[self._names[node]] = declared.manifest

    def _welcome(self, node: int, run: RunConfig, index: int) -> pb.Welcome:
        part = pb.Part(index=index, of=run.split.parts) if run.split else None
        return pb.Welcome(node_id=node, run_id=self.run_id, run_json=run.for_clients(), part=part)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the clients' resources."""
        for host in self._hosts.values():
            host.leave()

    def get_node_ids(self) -> list[int]:
        """All clients, by name."""
        return sorted(self._names, key=self._names.__getitem__)

    def name_of(self, node: int) -> str:
        """The name behind a Flower node id."""
        return self._names[node]

    def traffic(self) -> tuple[int, int]:
        """Bytes of arrays that clients have sent and received. The link sends no array again that a client has."""
        return self._bytes_up, self._bytes_down

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take the messages; a client works when its reply is pulled."""
        ids = []
        for message in messages:
            ids.append(uuid4().hex)
            self._pushed[ids[-1]] = self.send_and_receive([message])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies; each client works now."""
        return [next(self._pushed.pop(message_id)) for message_id in message_ids if message_id in self._pushed]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Copy the contents now; each client works when the iterator reaches its reply.

        `timeout` is ignored: a slow machine must not change a result.
        """
        del timeout
        parcels: dict[int, Parcel] = {}
        sent = []
        for message in messages:
            if id(message.content) not in parcels:  # strategies send the same content to all nodes
                parcels[id(message.content)] = Parcel(message.content)
            sent.append((message, parcels[id(message.content)]))
        return self._answers(sent)

    def _answers(self, sent: Sequence[tuple[Message, Parcel]]) -> Iterator[Message]:
        return (self._answer(message, parcel) for message, parcel in sent)

    def _received(self, message: Message, parcel: Parcel) -> Message:
        """The message as its client gets it."""
        meta = message.metadata
        self._bytes_down += parcel.size
        return self.create_message(parcel.open(), meta.message_type, meta.dst_node_id, meta.group_id)

    def _answer(self, message: Message, parcel: Parcel) -> Message:
        received = self._received(message, parcel)
        try:
            reply = self._hosts[message.metadata.dst_node_id].work(received)
        except Exception as e:  # any error of a client's app is that client's failure, reported as over the link
            return flower_adapter.reply(message, None, Error(_APP_FAILED, ": ".join(failure_of(e))))
        if reply.has_error():
            return flower_adapter.reply(message, None, Error(_APP_FAILED, f"AppError: {reply.error.reason}"))
        return self._sent_back(message, reply)

    def _sent_back(self, message: Message, reply: Message) -> Message:
        """The reply as the server gets it."""
        answer = Parcel(reply.content)
        self._bytes_up += answer.size
        return flower_adapter.reply(message, answer.open(), None)


class Parcel:
    """A serialised content: manifest and bytes, as sent over the link."""

    def __init__(self, content: RecordDict) -> None:
        self._manifest = records.to_manifest(content, with_digests=False).SerializeToString()
        self._buffers: list[Buffer] = [bytes(array.data) for array in records.arrays_of(content)]
        self.size = sum(map(len, self._buffers))

    def open(self) -> RecordDict:
        """A new content over the same read-only bytes."""
        return records.from_manifest(pb.Manifest.FromString(self._manifest), iter(self._buffers))
