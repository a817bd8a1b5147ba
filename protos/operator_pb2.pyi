from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("every_s",)
    EVERY_S_FIELD_NUMBER: _ClassVar[int]
    every_s: float
    def __init__(self, every_s: _Optional[float] = ...) -> None: ...

class ControlRequest(_message.Message):
    __slots__ = ("pause", "resume", "stop", "drop", "readmit", "next_session", "on_behalf_of")
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    READMIT_FIELD_NUMBER: _ClassVar[int]
    NEXT_SESSION_FIELD_NUMBER: _ClassVar[int]
    ON_BEHALF_OF_FIELD_NUMBER: _ClassVar[int]
    pause: Pause
    resume: Resume
    stop: Stop
    drop: Drop
    readmit: Readmit
    next_session: NextSession
    on_behalf_of: str
    def __init__(self, pause: _Optional[_Union[Pause, _Mapping]] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ..., drop: _Optional[_Union[Drop, _Mapping]] = ..., readmit: _Optional[_Union[Readmit, _Mapping]] = ..., next_session: _Optional[_Union[NextSession, _Mapping]] = ..., on_behalf_of: _Optional[str] = ...) -> None: ...

class Pause(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Resume(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Stop(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Drop(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class Readmit(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: str
    def __init__(self, node: _Optional[str] = ...) -> None: ...

class NextSession(_message.Message):
    __slots__ = ("classes",)
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, classes: _Optional[_Iterable[str]] = ...) -> None: ...

class RunStatus(_message.Message):
    __slots__ = ("run_id", "method", "round", "rounds", "phase", "paused", "stopping", "nodes", "missing", "completed", "loss", "accuracy", "round_s", "fold_s", "bytes_up", "bytes_down", "elapsed_s", "over", "dropped", "quarantined", "session", "sessions", "waiting_session", "classes", "primary", "spread")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STARTING: _ClassVar[RunStatus.Phase]
        WAITING: _ClassVar[RunStatus.Phase]
        ROUND: _ClassVar[RunStatus.Phase]
        OVER: _ClassVar[RunStatus.Phase]
    STARTING: RunStatus.Phase
    WAITING: RunStatus.Phase
    ROUND: RunStatus.Phase
    OVER: RunStatus.Phase
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ROUND_S_FIELD_NUMBER: _ClassVar[int]
    FOLD_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_S_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    WAITING_SESSION_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    method: str
    round: int
    rounds: int
    phase: RunStatus.Phase
    paused: bool
    stopping: bool
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    missing: _containers.RepeatedScalarFieldContainer[str]
    completed: int
    loss: float
    accuracy: float
    round_s: float
    fold_s: float
    bytes_up: int
    bytes_down: int
    elapsed_s: float
    over: str
    dropped: _containers.RepeatedScalarFieldContainer[str]
    quarantined: _containers.RepeatedScalarFieldContainer[str]
    session: int
    sessions: int
    waiting_session: int
    classes: _containers.RepeatedScalarFieldContainer[str]
    primary: MetricValue
    spread: Spread
    def __init__(self, run_id: _Optional[str] = ..., method: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., phase: _Optional[_Union[RunStatus.Phase, str]] = ..., paused: _Optional[bool] = ..., stopping: _Optional[bool] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., missing: _Optional[_Iterable[str]] = ..., completed: _Optional[int] = ..., loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., round_s: _Optional[float] = ..., fold_s: _Optional[float] = ..., bytes_up: _Optional[int] = ..., bytes_down: _Optional[int] = ..., elapsed_s: _Optional[float] = ..., over: _Optional[str] = ..., dropped: _Optional[_Iterable[str]] = ..., quarantined: _Optional[_Iterable[str]] = ..., session: _Optional[int] = ..., sessions: _Optional[int] = ..., waiting_session: _Optional[int] = ..., classes: _Optional[_Iterable[str]] = ..., primary: _Optional[_Union[MetricValue, _Mapping]] = ..., spread: _Optional[_Union[Spread, _Mapping]] = ...) -> None: ...

class MetricValue(_message.Message):
    __slots__ = ("name", "value", "unit", "lower_is_better")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    LOWER_IS_BETTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    unit: str
    lower_is_better: bool
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., unit: _Optional[str] = ..., lower_is_better: _Optional[bool] = ...) -> None: ...

class Spread(_message.Message):
    __slots__ = ("clients", "min", "q1", "median", "q3", "max")
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    Q1_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_FIELD_NUMBER: _ClassVar[int]
    Q3_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    clients: int
    min: float
    q1: float
    median: float
    q3: float
    max: float
    def __init__(self, clients: _Optional[int] = ..., min: _Optional[float] = ..., q1: _Optional[float] = ..., median: _Optional[float] = ..., q3: _Optional[float] = ..., max: _Optional[float] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("name", "state", "problem", "last_seen_s", "work", "step", "steps", "loss", "examples_per_s", "device_memory_bytes", "bytes_up", "bytes_down", "examples", "held_out", "device", "part", "primary", "holdings")
    class HoldingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_PER_S_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    problem: str
    last_seen_s: float
    work: str
    step: int
    steps: int
    loss: float
    examples_per_s: float
    device_memory_bytes: int
    bytes_up: int
    bytes_down: int
    examples: int
    held_out: int
    device: str
    part: str
    primary: MetricValue
    holdings: _containers.ScalarMap[str, int]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., problem: _Optional[str] = ..., last_seen_s: _Optional[float] = ..., work: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ..., examples_per_s: _Optional[float] = ..., device_memory_bytes: _Optional[int] = ..., bytes_up: _Optional[int] = ..., bytes_down: _Optional[int] = ..., examples: _Optional[int] = ..., held_out: _Optional[int] = ..., device: _Optional[str] = ..., part: _Optional[str] = ..., primary: _Optional[_Union[MetricValue, _Mapping]] = ..., holdings: _Optional[_Mapping[str, int]] = ...) -> None: ...
