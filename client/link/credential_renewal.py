"""Credentials that are renewed under a running client: the last ones that fitted count until new ones do.

Whoever copies files to a machine copies them one after the other, so for a moment the certificate is the new one
and the key still the old. That moment must not end a client that would come back by itself.
"""

from __future__ import annotations

import logging

import grpc

from fednc.client.link.channel import Credentials
from fednc.common.errors import ConfigError

log = logging.getLogger("fednc.client")


class Renewing:
    """What a client connects with: its files as they are now, or as they last were when they fitted."""

    def __init__(self, files: Credentials | None) -> None:
        self._files = files
        self._kept: grpc.ChannelCredentials | None = None
        self._trouble = ""

    def for_channel(self) -> grpc.ChannelCredentials | None:
        """None is plaintext. Raises ConfigError: they cannot be used, and never could."""
        if self._files is None:
            return None
        try:
            self._kept, trouble = self._files.for_channel(), ""
        except ConfigError as e:
            if self._kept is None:
                raise
            trouble = str(e)
        if trouble and trouble != self._trouble:
            log.warning("%s. The ones from before are used until new ones fit", trouble)
        if self._trouble and not trouble:
            log.info("the renewed credentials fit and are used from now on")
        self._trouble = trouble
        return self._kept
