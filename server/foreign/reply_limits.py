"""What a reply to a foreign app may be: as large as the run file's budget says, whatever it is made of.

Asked by the app's federation in place of `limits.check_header`: a foreign app decides itself what its replies
hold, so nothing but their size is limited here. What they hold is read in the app's own process.
"""

from __future__ import annotations

from fednc.common.peer_text import LONG_TEXT, SHORT_TEXT, is_plain
from fednc.common.wire import records
from fednc.common.wire.protocol import WHOLE_BYTES
from fednc.protos import federation_pb2 as pb
from fednc.server.link.message_limits import ID_BYTES, InvalidError, require

FACTOR = 8  # times `server.ingest_mib`: the largest reply, and all replies together that the app has not pulled
_HEAD_BYTES = 2 * WHOLE_BYTES  # of a manifest that is not bulk


class TooLargeError(InvalidError):
    """A reply that an honest node may send, and that this server does not take."""


def most_bytes(ingest_bytes: int) -> int:
    """The largest reply that is taken."""
    return FACTOR * ingest_bytes


def check_header(header: pb.UploadHeader, ingest_bytes: int) -> None:
    """Raises InvalidError: nobody honest sends this. TooLargeError: somebody honest may."""
    require("upload_id", 8 <= len(header.upload_id) <= ID_BYTES, f"{len(header.upload_id)} bytes, not 8 to 32")
    failure, manifest = header.failure, header.manifest
    if header.HasField("failure"):
        require("manifest", not manifest.ByteSize(), "a failure has no content")
        for field, text, most in (("kind", failure.kind, SHORT_TEXT), ("reason", failure.reason, LONG_TEXT)):
            require(f"failure.{field}", len(text) <= most and is_plain(text), f"no plain text of at most {most}")
    head_bytes = manifest.ByteSize()
    require("manifest", head_bytes <= _HEAD_BYTES, f"{head_bytes} bytes that are not packed")
    require("manifest", not (manifest.HasField("packed") and manifest.records), "packed, and records beside it")
    size, most = records.bulk_bytes(manifest), most_bytes(ingest_bytes)
    if size > most:
        raise TooLargeError(
            "manifest.size",
            f"a reply of {size / 2**20:.0f} MiB; at most {most >> 20} MiB are taken, {FACTOR} times "
            f"server.ingest_mib = {ingest_bytes >> 20}: raise server.ingest_mib in the server's run file",
        )
