"""Limits on replies to a foreign app: only their size is limited, by the run file's budget.

Used by the app's federation instead of `message_limits.check_header`: a foreign app decides what its replies
contain, and their content is read only in the app's own process.
"""

from __future__ import annotations

from fednc.common.peer_text import LONG_TEXT, SHORT_TEXT, is_plain
from fednc.common.wire import records
from fednc.common.wire.protocol import WHOLE_BYTES
from fednc.protos import federation_pb2 as pb
from fednc.server.link.message_limits import ID_BYTES, InvalidError, require

FACTOR = 8  # times `server.ingest_mib`: the limit for one reply, and for all replies that the app has not pulled
_HEAD_BYTES = 2 * WHOLE_BYTES  # limit for a manifest


class TooLargeError(InvalidError):
    """A reply that an honest node may send, but that is too large for this server."""


def most_bytes(ingest_bytes: int) -> int:
    """The size of the largest reply that is accepted."""
    return FACTOR * ingest_bytes


def check_header(header: pb.UploadHeader, ingest_bytes: int) -> None:
    """Raises InvalidError if no honest node sends this, TooLargeError if an honest node might."""
    require("upload_id", 8 <= len(header.upload_id) <= ID_BYTES, f"{len(header.upload_id)} bytes, not 8 to 32")
    failure, manifest = header.failure, header.manifest
    if header.HasField("failure"):
        require("manifest", not manifest.ByteSize(), "a failure has no content")
        for field, text, most in (("kind", failure.kind, SHORT_TEXT), ("reason", failure.reason, LONG_TEXT)):
            fits = len(text) <= most and is_plain(text)
            require(f"failure.{field}", fits, f"must be plain text of at most {most} characters")
    head_bytes = manifest.ByteSize()
    require("manifest", head_bytes <= _HEAD_BYTES, f"{head_bytes} bytes, at most {_HEAD_BYTES} unless packed")
    require(
        "manifest", not (manifest.HasField("packed") and manifest.records), "has both packed and plain records"
    )
    size, most = records.bulk_bytes(manifest), most_bytes(ingest_bytes)
    if size > most:
        raise TooLargeError(
            "manifest.size",
            f"a reply of {size / 2**20:.0f} MiB; at most {most >> 20} MiB are accepted, {FACTOR} times "
            f"server.ingest_mib = {ingest_bytes >> 20}: raise server.ingest_mib in the server's run file",
        )
