"""Credentials that are replaced while a client runs: the last valid ones are used until the new ones are complete.

Files are copied to a machine one after the other, so for a moment the certificate is new and the key still old.
That must not end a client that would otherwise reconnect.
"""

from __future__ import annotations

import logging

import grpc

from fednc.client.link.channel import Credentials
from fednc.common.errors import ConfigError

log = logging.getLogger("fednc.client")


class RenewableCredentials:
    """What a client connects with: its files as they are now, or as they were when they were last valid."""

    def __init__(self, files: Credentials | None) -> None:
        self._files = files
        self._kept: grpc.ChannelCredentials | None = None
        self._trouble = ""

    def for_channel(self) -> grpc.ChannelCredentials | None:
        """None is plaintext. Raises ConfigError: the files are not valid and never were."""
        if self._files is None:
            return None
        try:
            self._kept, trouble = self._files.for_channel(), ""
        except ConfigError as e:
            if self._kept is None:
                raise
            trouble = str(e)
        if trouble and trouble != self._trouble:
            log.warning("%s. The previous credentials are used until the new ones are valid", trouble)
        if self._trouble and not trouble:
            log.info("the renewed credentials are valid and used from now on")
        self._trouble = trouble
        return self._kept
