"""The link of a run of a foreign app: clients must run the same app, and get its configuration."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app.user_config import UserConfig

from fednc.common.config.run import RunConfig
from fednc.common.errors import ProtocolError, RefusedError
from fednc.common.flower_adapter import AppFolder
from fednc.common.peer_text import plain
from fednc.protos import federation_pb2 as pb
from fednc.server.foreign import reply_limits
from fednc.server.foreign.mailbox import Mailbox
from fednc.server.link.assignments import REPLY_REJECTED, Work
from fednc.server.link.federation import Federation
from fednc.server.link.nodes import Node
from fednc.server.storage.event_log import EventLog
from fednc.server.storage.events import OtherCode, ReplyDropped, ReplyTooLarge

_CODE_LENGTH = 12  # characters shown of a code fingerprint


class AppFederation(Federation):
    """The state of the link of one run of a foreign app."""

    def __init__(
        self,
        run_id: str,
        run: RunConfig,
        spool: Path,
        events: EventLog,
        app: AppFolder,
        config: UserConfig,
        *,
        any_code: bool = False,
    ) -> None:
        """`any_code`: accept clients whose code of the app differs."""
        super().__init__(run_id, run, spool, events)
        self.app, self._config = app.id, config
        self._code, self._any_code = app.code, any_code
        most = reply_limits.most_bytes(self.intake.budget.total_bytes)
        self.mailbox = Mailbox(self.intake, most, self.note_dropped)

    def admit(self, request: pb.AttendRequest) -> Node:
        """A node attends. Raises RefusedError, Refusal."""
        if request.app == self.app and request.app_code != self._code:
            self._note_other_code(request)
        return super().admit(request)

    def _note_other_code(self, request: pb.AttendRequest) -> None:
        """Raises RefusedError unless other code is allowed."""
        theirs = plain(request.app_code, _CODE_LENGTH)
        text = (
            f"{request.name} runs {self.app} with other code than this server "
            f"({theirs} there, {self._code[:_CODE_LENGTH]} here)"
        )
        if not self._any_code:
            raise RefusedError(
                f"{text}: copy the server's Python files into the app's folder, or give the changed app a new "
                "version, or start the server with --any-code"
            )
        self._node_events.emit(OtherCode(text=text, node=request.name, code=theirs))

    def _welcome(self, node: Node) -> pb.Welcome:
        welcome = super()._welcome(node)
        welcome.run_json = json.dumps(self._config)
        return welcome

    def check_header(self, work: Work, header: pb.UploadHeader) -> None:
        """Raises InvalidError if the server does not accept such a reply."""
        del work
        reply_limits.check_header(header, self.intake.budget.total_bytes)

    def reject(self, work: Work, error: ProtocolError) -> pb.Receipt:
        """The work fails. A reply that is too large is not counted against its node."""
        if not isinstance(error, reply_limits.TooLargeError):
            return super().reject(work, error)
        name = work.node.name
        self._node_events.emit(ReplyTooLarge(text=f"refused the reply of {name}: {error}", node=name))
        self._fail(work, REPLY_REJECTED, "TooLarge", str(error))
        return pb.Receipt(outcome=pb.Receipt.REJECTED, reason=str(error))

    def note_dropped(self, node: str, size: int, most: int) -> None:
        """A reply that the app had not pulled was dropped for newer ones."""
        text = (
            f"dropped the oldest reply that the app has not pulled: {size / 2**20:.1f} MiB from {node}. At most "
            f"{most >> 20} MiB are kept, {reply_limits.FACTOR} times server.ingest_mib; "
            "let the app pull its replies"
        )
        self._node_events.emit(ReplyDropped(text=text, node=node, size=size))
