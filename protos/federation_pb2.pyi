from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttendRequest(_message.Message):
    __slots__ = ("protocol", "name", "software", "tasks", "methods", "part", "app", "instance", "dry_run", "app_code")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    APP_CODE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    name: str
    software: str
    tasks: _containers.RepeatedScalarFieldContainer[str]
    methods: _containers.RepeatedScalarFieldContainer[str]
    part: Part
    app: str
    instance: bytes
    dry_run: bool
    app_code: str
    def __init__(self, protocol: _Optional[int] = ..., name: _Optional[str] = ..., software: _Optional[str] = ..., tasks: _Optional[_Iterable[str]] = ..., methods: _Optional[_Iterable[str]] = ..., part: _Optional[_Union[Part, _Mapping]] = ..., app: _Optional[str] = ..., instance: _Optional[bytes] = ..., dry_run: _Optional[bool] = ..., app_code: _Optional[str] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("index", "of")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    index: int
    of: int
    def __init__(self, index: _Optional[int] = ..., of: _Optional[int] = ...) -> None: ...

class ServerEvent(_message.Message):
    __slots__ = ("welcome", "assignment", "cancel", "run_over")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    RUN_OVER_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    assignment: Assignment
    cancel: Cancel
    run_over: RunOver
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., assignment: _Optional[_Union[Assignment, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., run_over: _Optional[_Union[RunOver, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("node_id", "attendance", "run_id", "run_json", "part", "liveness_s", "whole_bytes")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ATTENDANCE_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_JSON_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    LIVENESS_S_FIELD_NUMBER: _ClassVar[int]
    WHOLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    attendance: bytes
    run_id: str
    run_json: str
    part: Part
    liveness_s: float
    whole_bytes: int
    def __init__(self, node_id: _Optional[int] = ..., attendance: _Optional[bytes] = ..., run_id: _Optional[str] = ..., run_json: _Optional[str] = ..., part: _Optional[_Union[Part, _Mapping]] = ..., liveness_s: _Optional[float] = ..., whole_bytes: _Optional[int] = ...) -> None: ...

class Declaration(_message.Message):
    __slots__ = ("examples", "class_counts", "device", "pid", "problem", "held_out", "standing", "manifest", "run_id", "holdings")
    class Standing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        READY: _ClassVar[Declaration.Standing]
        PAUSED: _ClassVar[Declaration.Standing]
        LEAVING: _ClassVar[Declaration.Standing]
    READY: Declaration.Standing
    PAUSED: Declaration.Standing
    LEAVING: Declaration.Standing
    class HoldingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    CLASS_COUNTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    examples: int
    class_counts: _containers.RepeatedScalarFieldContainer[int]
    device: str
    pid: int
    problem: str
    held_out: int
    standing: Declaration.Standing
    manifest: str
    run_id: str
    holdings: _containers.ScalarMap[str, int]
    def __init__(self, examples: _Optional[int] = ..., class_counts: _Optional[_Iterable[int]] = ..., device: _Optional[str] = ..., pid: _Optional[int] = ..., problem: _Optional[str] = ..., held_out: _Optional[int] = ..., standing: _Optional[_Union[Declaration.Standing, str]] = ..., manifest: _Optional[str] = ..., run_id: _Optional[str] = ..., holdings: _Optional[_Mapping[str, int]] = ...) -> None: ...

class DeclarationReceipt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunOver(_message.Message):
    __slots__ = ("reason", "failed")
    REASON_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    reason: str
    failed: bool
    def __init__(self, reason: _Optional[str] = ..., failed: _Optional[bool] = ...) -> None: ...

class AssignmentId(_message.Message):
    __slots__ = ("run_id", "group_id", "message_type", "node_id", "ordinal", "attempt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    group_id: str
    message_type: str
    node_id: int
    ordinal: int
    attempt: int
    def __init__(self, run_id: _Optional[str] = ..., group_id: _Optional[str] = ..., message_type: _Optional[str] = ..., node_id: _Optional[int] = ..., ordinal: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("id", "content", "blobs")
    ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    id: AssignmentId
    content: Manifest
    blobs: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, id: _Optional[_Union[AssignmentId, _Mapping]] = ..., content: _Optional[_Union[Manifest, _Mapping]] = ..., blobs: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("id", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: AssignmentId
    reason: str
    def __init__(self, id: _Optional[_Union[AssignmentId, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("id", "step", "steps", "loss", "examples_per_s", "device_memory_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_PER_S_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: AssignmentId
    step: int
    steps: int
    loss: float
    examples_per_s: float
    device_memory_bytes: int
    def __init__(self, id: _Optional[_Union[AssignmentId, _Mapping]] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ..., examples_per_s: _Optional[float] = ..., device_memory_bytes: _Optional[int] = ...) -> None: ...

class ReportSummary(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("records", "packed")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    packed: Packed
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., packed: _Optional[_Union[Packed, _Mapping]] = ...) -> None: ...

class Packed(_message.Message):
    __slots__ = ("size", "digest", "array_bytes")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ARRAY_BYTES_FIELD_NUMBER: _ClassVar[int]
    size: int
    digest: bytes
    array_bytes: int
    def __init__(self, size: _Optional[int] = ..., digest: _Optional[bytes] = ..., array_bytes: _Optional[int] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("name", "arrays", "metrics", "config")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    name: str
    arrays: Arrays
    metrics: Values
    config: Values
    def __init__(self, name: _Optional[str] = ..., arrays: _Optional[_Union[Arrays, _Mapping]] = ..., metrics: _Optional[_Union[Values, _Mapping]] = ..., config: _Optional[_Union[Values, _Mapping]] = ...) -> None: ...

class Arrays(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ArrayMeta]
    def __init__(self, items: _Optional[_Iterable[_Union[ArrayMeta, _Mapping]]] = ...) -> None: ...

class ArrayMeta(_message.Message):
    __slots__ = ("key", "dtype", "shape", "stype", "size", "digest")
    KEY_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    STYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    key: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    stype: str
    size: int
    digest: bytes
    def __init__(self, key: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., stype: _Optional[str] = ..., size: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Values(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[Entry]
    def __init__(self, entries: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("key", "scalar", "list")
    KEY_FIELD_NUMBER: _ClassVar[int]
    SCALAR_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    key: str
    scalar: Scalar
    list: ScalarList
    def __init__(self, key: _Optional[str] = ..., scalar: _Optional[_Union[Scalar, _Mapping]] = ..., list: _Optional[_Union[ScalarList, _Mapping]] = ...) -> None: ...

class Scalar(_message.Message):
    __slots__ = ("bool", "int", "double", "string", "bytes", "uint")
    BOOL_FIELD_NUMBER: _ClassVar[int]
    INT_FIELD_NUMBER: _ClassVar[int]
    DOUBLE_FIELD_NUMBER: _ClassVar[int]
    STRING_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    UINT_FIELD_NUMBER: _ClassVar[int]
    bool: bool
    int: int
    double: float
    string: str
    bytes: bytes
    uint: int
    def __init__(self, bool: _Optional[bool] = ..., int: _Optional[int] = ..., double: _Optional[float] = ..., string: _Optional[str] = ..., bytes: _Optional[bytes] = ..., uint: _Optional[int] = ...) -> None: ...

class ScalarList(_message.Message):
    __slots__ = ("ints", "doubles", "bools", "strings", "bytes", "uints")
    INTS_FIELD_NUMBER: _ClassVar[int]
    DOUBLES_FIELD_NUMBER: _ClassVar[int]
    BOOLS_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    UINTS_FIELD_NUMBER: _ClassVar[int]
    ints: _containers.RepeatedScalarFieldContainer[int]
    doubles: _containers.RepeatedScalarFieldContainer[float]
    bools: _containers.RepeatedScalarFieldContainer[bool]
    strings: _containers.RepeatedScalarFieldContainer[str]
    bytes: _containers.RepeatedScalarFieldContainer[bytes]
    uints: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ints: _Optional[_Iterable[int]] = ..., doubles: _Optional[_Iterable[float]] = ..., bools: _Optional[_Iterable[bool]] = ..., strings: _Optional[_Iterable[str]] = ..., bytes: _Optional[_Iterable[bytes]] = ..., uints: _Optional[_Iterable[int]] = ...) -> None: ...

class DownloadRequest(_message.Message):
    __slots__ = ("digests",)
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    digests: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, digests: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class UploadFrame(_message.Message):
    __slots__ = ("header", "data", "end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    data: bytes
    end: UploadEnd
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., end: _Optional[_Union[UploadEnd, _Mapping]] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("id", "upload_id", "manifest", "failure")
    ID_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    id: AssignmentId
    upload_id: bytes
    manifest: Manifest
    failure: Failure
    def __init__(self, id: _Optional[_Union[AssignmentId, _Mapping]] = ..., upload_id: _Optional[bytes] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "kind", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: int
    kind: str
    reason: str
    def __init__(self, code: _Optional[int] = ..., kind: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class UploadEnd(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class WholeUpload(_message.Message):
    __slots__ = ("header", "data", "digest")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    data: bytes
    digest: bytes
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., digest: _Optional[bytes] = ...) -> None: ...

class UploadEvent(_message.Message):
    __slots__ = ("grant", "receipt")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    grant: Grant
    receipt: Receipt
    def __init__(self, grant: _Optional[_Union[Grant, _Mapping]] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("offset", "until", "frame")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    offset: int
    until: int
    frame: int
    def __init__(self, offset: _Optional[int] = ..., until: _Optional[int] = ..., frame: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("outcome", "reason")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Receipt.Outcome]
        COMMITTED: _ClassVar[Receipt.Outcome]
        DUPLICATE: _ClassVar[Receipt.Outcome]
        LATE: _ClassVar[Receipt.Outcome]
        REJECTED: _ClassVar[Receipt.Outcome]
        DAMAGED: _ClassVar[Receipt.Outcome]
    UNSPECIFIED: Receipt.Outcome
    COMMITTED: Receipt.Outcome
    DUPLICATE: Receipt.Outcome
    LATE: Receipt.Outcome
    REJECTED: Receipt.Outcome
    DAMAGED: Receipt.Outcome
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    outcome: Receipt.Outcome
    reason: str
    def __init__(self, outcome: _Optional[_Union[Receipt.Outcome, str]] = ..., reason: _Optional[str] = ...) -> None: ...
