"""A reply as an attacker builds it: any bytes, in any order, in frames or in one message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from flwr.app import MetricRecord, RecordDict
from torch import Tensor

from fednc.common.wire import arrays, messages, records
from fednc.common.wire.checksum import fingerprint
from fednc.protos import federation_pb2 as pb
from support.hostile.messages import OK, Edit, spoil_bytes

REJECTED, COMMITTED, DAMAGED = pb.Receipt.REJECTED, pb.Receipt.COMMITTED, pb.Receipt.DAMAGED
LATE, DUPLICATE = pb.Receipt.LATE, pb.Receipt.DUPLICATE
HEADER = b"<header>"
EXAMPLES = 10  # examples that every node announces
MOST_AT_ONCE = 1 << 20  # most bytes in one message, however few uploads share the window
FAR = 100.0  # largest allowed norm of a change


class Model(dict[str, Tensor]):
    """Tensors by name; hypothesis does not print every number."""

    def __repr__(self) -> str:
        return "the model"


@dataclass(repr=False)
class HostileReply:
    """A reply to the server. `outcome` None: the call ends with `code` instead of a receipt."""

    header: pb.UploadHeader
    pieces: list[bytearray]  # data of each array, in the manifest's order
    frames: list[bytes] | None = None  # instead of header, pieces and end; HEADER stands for the header
    counted: str = ""
    outcome: pb.Receipt.Outcome | None = REJECTED
    code: grpc.StatusCode = OK
    whole: bool = False  # sent in one message
    times: int = 1  # times that it is sent; after the first it is a duplicate
    edits: Sequence[Edit] = ()  # applied to the header's bytes
    how: object = ""

    def __repr__(self) -> str:
        return f"<{self.how!s:.300}: {self.counted or 'not counted'}, {self.outcome}>"

    def to_frames(self, work_id: pb.AssignmentId) -> list[bytes]:
        """The frames for this assignment; fields already set in the header's id are kept."""
        header = self._header(work_id)
        first, data = pb.UploadFrame(header=header).SerializeToString(), b"".join(self.pieces)
        if self.frames is not None:
            return [spoil_bytes(first, self.edits) if frame is HEADER else frame for frame in self.frames]
        return [first, *([data_frame(data)] if data else []), end_frame(fingerprint(data))]

    def to_whole(self, work_id: pb.AssignmentId) -> bytes:
        """The same in one message."""
        data = b"".join(self.pieces)
        upload = pb.WholeUpload(header=self._header(work_id), data=data, digest=fingerprint(data))
        return upload.SerializeToString()

    def _header(self, work_id: pb.AssignmentId) -> pb.UploadHeader:
        header = pb.UploadHeader(id=work_id)
        header.MergeFrom(self.header)
        return header


def data_frame(data: bytes) -> bytes:
    return pb.UploadFrame(data=data).SerializeToString()


def end_frame(digest: bytes) -> bytes:
    return pb.UploadFrame(end=pb.UploadEnd(digest=digest)).SerializeToString()


def honest_content(model: Model, **metrics: Any) -> RecordDict:
    told = {messages.EXAMPLES: EXAMPLES, "loss/loss": 0.5} | metrics
    return RecordDict({messages.MODEL: arrays.to_record(model), messages.METRICS: MetricRecord(told)})


def to_reply(content: RecordDict) -> HostileReply:
    manifest = records.to_manifest(content, with_digests=False)
    pieces = [bytearray(array.data) for array in records.arrays_of(content)]
    return HostileReply(pb.UploadHeader(upload_id=bytes(16), manifest=manifest), pieces)


def model_of(header: pb.UploadHeader) -> Any:
    return header.manifest.records[0].arrays.items


def metrics_of(header: pb.UploadHeader) -> Any:
    return header.manifest.records[1].metrics.entries
