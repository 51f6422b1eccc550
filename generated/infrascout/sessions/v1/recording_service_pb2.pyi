import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from infrascout.sessions.v1 import access_pb2 as _access_pb2
from infrascout.sessions.v1 import error_reason_pb2 as _error_reason_pb2
from infrascout.sessions.v1 import execution_pb2 as _execution_pb2
from infrascout.sessions.v1 import insight_pb2 as _insight_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecordExecutionRequest(_message.Message):
    __slots__ = ("session_id", "command", "capability", "output", "error_output", "exit_code", "start_time", "end_time", "step", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ERROR_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    command: str
    capability: str
    output: _execution_pb2.Output
    error_output: _execution_pb2.Output
    exit_code: int
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    step: str
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., command: _Optional[str] = ..., capability: _Optional[str] = ..., output: _Optional[_Union[_execution_pb2.Output, _Mapping]] = ..., error_output: _Optional[_Union[_execution_pb2.Output, _Mapping]] = ..., exit_code: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., step: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class RecordExecutionResponse(_message.Message):
    __slots__ = ("execution",)
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    execution: _execution_pb2.Execution
    def __init__(self, execution: _Optional[_Union[_execution_pb2.Execution, _Mapping]] = ...) -> None: ...

class RecordExecutionsRequest(_message.Message):
    __slots__ = ("executions",)
    EXECUTIONS_FIELD_NUMBER: _ClassVar[int]
    executions: _containers.RepeatedCompositeFieldContainer[RecordExecutionRequest]
    def __init__(self, executions: _Optional[_Iterable[_Union[RecordExecutionRequest, _Mapping]]] = ...) -> None: ...

class RecordExecutionsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RecordExecutionsResult]
    def __init__(self, results: _Optional[_Iterable[_Union[RecordExecutionsResult, _Mapping]]] = ...) -> None: ...

class RecordExecutionsResult(_message.Message):
    __slots__ = ("request_id", "recorded", "refusal")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    recorded: Recorded
    refusal: Refusal
    def __init__(self, request_id: _Optional[str] = ..., recorded: _Optional[_Union[Recorded, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Recorded(_message.Message):
    __slots__ = ("session_id", "execution_id", "sequence")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    execution_id: str
    sequence: int
    def __init__(self, session_id: _Optional[str] = ..., execution_id: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "reason", "message", "metadata", "violations")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: _error_reason_pb2.ErrorReason
    message: str
    metadata: _containers.ScalarMap[str, str]
    violations: _containers.RepeatedCompositeFieldContainer[FieldViolation]
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[_Union[_error_reason_pb2.ErrorReason, str]] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., violations: _Optional[_Iterable[_Union[FieldViolation, _Mapping]]] = ...) -> None: ...

class FieldViolation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class BeginExecutionRequest(_message.Message):
    __slots__ = ("session_id", "command", "capability", "start_time", "step", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    command: str
    capability: str
    start_time: _timestamp_pb2.Timestamp
    step: str
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., command: _Optional[str] = ..., capability: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., step: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class BeginExecutionResponse(_message.Message):
    __slots__ = ("execution",)
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    execution: _execution_pb2.Execution
    def __init__(self, execution: _Optional[_Union[_execution_pb2.Execution, _Mapping]] = ...) -> None: ...

class AppendOutputRequest(_message.Message):
    __slots__ = ("session_id", "sequence", "stream", "offset", "data")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    sequence: int
    stream: _execution_pb2.OutputStream
    offset: int
    data: bytes
    def __init__(self, session_id: _Optional[str] = ..., sequence: _Optional[int] = ..., stream: _Optional[_Union[_execution_pb2.OutputStream, str]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class AppendOutputResponse(_message.Message):
    __slots__ = ("size_bytes",)
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    size_bytes: int
    def __init__(self, size_bytes: _Optional[int] = ...) -> None: ...

class FinishExecutionRequest(_message.Message):
    __slots__ = ("session_id", "sequence", "exit_code", "end_time", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    sequence: int
    exit_code: int
    end_time: _timestamp_pb2.Timestamp
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., sequence: _Optional[int] = ..., exit_code: _Optional[int] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class FinishExecutionResponse(_message.Message):
    __slots__ = ("execution",)
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    execution: _execution_pb2.Execution
    def __init__(self, execution: _Optional[_Union[_execution_pb2.Execution, _Mapping]] = ...) -> None: ...

class SaveInsightRequest(_message.Message):
    __slots__ = ("session_id", "category", "key", "value", "severity", "evidence", "affected_resources", "remediation_steps", "execution_sequences", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    AFFECTED_RESOURCES_FIELD_NUMBER: _ClassVar[int]
    REMEDIATION_STEPS_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    category: str
    key: str
    value: str
    severity: _insight_pb2.Severity
    evidence: str
    affected_resources: _containers.RepeatedScalarFieldContainer[str]
    remediation_steps: _containers.RepeatedScalarFieldContainer[str]
    execution_sequences: _containers.RepeatedScalarFieldContainer[int]
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., category: _Optional[str] = ..., key: _Optional[str] = ..., value: _Optional[str] = ..., severity: _Optional[_Union[_insight_pb2.Severity, str]] = ..., evidence: _Optional[str] = ..., affected_resources: _Optional[_Iterable[str]] = ..., remediation_steps: _Optional[_Iterable[str]] = ..., execution_sequences: _Optional[_Iterable[int]] = ..., request_id: _Optional[str] = ...) -> None: ...

class SaveInsightResponse(_message.Message):
    __slots__ = ("insight",)
    INSIGHT_FIELD_NUMBER: _ClassVar[int]
    insight: _insight_pb2.Insight
    def __init__(self, insight: _Optional[_Union[_insight_pb2.Insight, _Mapping]] = ...) -> None: ...
