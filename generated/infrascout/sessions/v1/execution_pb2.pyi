import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from infrascout.sessions.v1 import actor_pb2 as _actor_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExecutionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXECUTION_STATE_UNSPECIFIED: _ClassVar[ExecutionState]
    EXECUTION_STATE_EXITED: _ClassVar[ExecutionState]
    EXECUTION_STATE_KILLED: _ClassVar[ExecutionState]
    EXECUTION_STATE_UNFINISHED: _ClassVar[ExecutionState]

class OutputStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_STREAM_UNSPECIFIED: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDOUT: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDERR: _ClassVar[OutputStream]
EXECUTION_STATE_UNSPECIFIED: ExecutionState
EXECUTION_STATE_EXITED: ExecutionState
EXECUTION_STATE_KILLED: ExecutionState
EXECUTION_STATE_UNFINISHED: ExecutionState
OUTPUT_STREAM_UNSPECIFIED: OutputStream
OUTPUT_STREAM_STDOUT: OutputStream
OUTPUT_STREAM_STDERR: OutputStream

class Execution(_message.Message):
    __slots__ = ("execution_id", "session_id", "sequence", "state", "command", "capability", "output", "error_output", "exit_code", "start_time", "end_time", "record_time", "actor", "step", "finish_record_time")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ERROR_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    RECORD_TIME_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    FINISH_RECORD_TIME_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    session_id: str
    sequence: int
    state: ExecutionState
    command: str
    capability: str
    output: Output
    error_output: Output
    exit_code: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    record_time: _timestamp_pb2.Timestamp
    actor: _actor_pb2.Actor
    step: str
    finish_record_time: _timestamp_pb2.Timestamp
    def __init__(self, execution_id: _Optional[str] = ..., session_id: _Optional[str] = ..., sequence: _Optional[int] = ..., state: _Optional[_Union[ExecutionState, str]] = ..., command: _Optional[str] = ..., capability: _Optional[str] = ..., output: _Optional[_Union[Output, _Mapping]] = ..., error_output: _Optional[_Union[Output, _Mapping]] = ..., exit_code: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., record_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., actor: _Optional[_Union[_actor_pb2.Actor, _Mapping]] = ..., step: _Optional[str] = ..., finish_record_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("text", "binary", "size_bytes", "truncated", "sha256")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    text: str
    binary: bytes
    size_bytes: int
    truncated: bool
    sha256: str
    def __init__(self, text: _Optional[str] = ..., binary: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., truncated: _Optional[bool] = ..., sha256: _Optional[str] = ...) -> None: ...
