import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from infrascout.sessions.v1 import actor_pb2 as _actor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_STATUS_UNSPECIFIED: _ClassVar[SessionStatus]
    SESSION_STATUS_RUNNING: _ClassVar[SessionStatus]
    SESSION_STATUS_PENDING_REVIEW: _ClassVar[SessionStatus]
    SESSION_STATUS_COMPLETED: _ClassVar[SessionStatus]
    SESSION_STATUS_FAILED: _ClassVar[SessionStatus]
    SESSION_STATUS_INTERRUPTED: _ClassVar[SessionStatus]

class ReviewIndependence(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REVIEW_INDEPENDENCE_UNSPECIFIED: _ClassVar[ReviewIndependence]
    REVIEW_INDEPENDENCE_REQUIRED: _ClassVar[ReviewIndependence]
    REVIEW_INDEPENDENCE_NONE: _ClassVar[ReviewIndependence]
SESSION_STATUS_UNSPECIFIED: SessionStatus
SESSION_STATUS_RUNNING: SessionStatus
SESSION_STATUS_PENDING_REVIEW: SessionStatus
SESSION_STATUS_COMPLETED: SessionStatus
SESSION_STATUS_FAILED: SessionStatus
SESSION_STATUS_INTERRUPTED: SessionStatus
REVIEW_INDEPENDENCE_UNSPECIFIED: ReviewIndependence
REVIEW_INDEPENDENCE_REQUIRED: ReviewIndependence
REVIEW_INDEPENDENCE_NONE: ReviewIndependence

class Session(_message.Message):
    __slots__ = ("session_id", "agent_id", "hostname", "playbook", "description", "status", "status_reason", "execution_count", "failed_execution_count", "insight_count", "summary", "start_time", "last_activity_time", "submit_time", "end_time", "transitions", "review")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    PLAYBOOK_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    STATUS_REASON_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_COUNT_FIELD_NUMBER: _ClassVar[int]
    FAILED_EXECUTION_COUNT_FIELD_NUMBER: _ClassVar[int]
    INSIGHT_COUNT_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_ACTIVITY_TIME_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    TRANSITIONS_FIELD_NUMBER: _ClassVar[int]
    REVIEW_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    agent_id: str
    hostname: str
    playbook: str
    description: str
    status: SessionStatus
    status_reason: str
    execution_count: int
    failed_execution_count: int
    insight_count: int
    summary: str
    start_time: _timestamp_pb2.Timestamp
    last_activity_time: _timestamp_pb2.Timestamp
    submit_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    transitions: _containers.RepeatedCompositeFieldContainer[Transition]
    review: Review
    def __init__(self, session_id: _Optional[str] = ..., agent_id: _Optional[str] = ..., hostname: _Optional[str] = ..., playbook: _Optional[str] = ..., description: _Optional[str] = ..., status: _Optional[_Union[SessionStatus, str]] = ..., status_reason: _Optional[str] = ..., execution_count: _Optional[int] = ..., failed_execution_count: _Optional[int] = ..., insight_count: _Optional[int] = ..., summary: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_activity_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., submit_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., transitions: _Optional[_Iterable[_Union[Transition, _Mapping]]] = ..., review: _Optional[_Union[Review, _Mapping]] = ...) -> None: ...

class Transition(_message.Message):
    __slots__ = ("status", "time", "actor", "reason")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    status: SessionStatus
    time: _timestamp_pb2.Timestamp
    actor: _actor_pb2.Actor
    reason: str
    def __init__(self, status: _Optional[_Union[SessionStatus, str]] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., actor: _Optional[_Union[_actor_pb2.Actor, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class Review(_message.Message):
    __slots__ = ("reviewer", "comment", "time", "independence")
    REVIEWER_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    INDEPENDENCE_FIELD_NUMBER: _ClassVar[int]
    reviewer: _actor_pb2.Actor
    comment: str
    time: _timestamp_pb2.Timestamp
    independence: ReviewIndependence
    def __init__(self, reviewer: _Optional[_Union[_actor_pb2.Actor, _Mapping]] = ..., comment: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., independence: _Optional[_Union[ReviewIndependence, str]] = ...) -> None: ...
