"""Requests as records of the domain; they have been checked by `rules`."""

from hashlib import sha256

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from infrascout.sessions.v1 import execution_pb2
from infrascout.sessions.v1 import recording_service_pb2 as recording_service
from infrascout.sessions.v1 import session_service_pb2 as session_service
from infrascout_sessions.messages.resources import SEVERITY_NUMBERS, STATUS_NUMBERS
from infrascout_sessions.models import (
    Actor,
    NewExecution,
    NewId,
    NewInsight,
    Output,
    RequestKey,
    SessionFilter,
    Severity,
)

_STATUSES = {number: status for status, number in STATUS_NUMBERS.items()}
# Unset stands for INFO.
_SEVERITIES = {0: Severity.INFO} | {
    number: severity for severity, number in SEVERITY_NUMBERS.items()
}


def time_of(timestamp: Timestamp) -> int:
    """Microseconds since the epoch; finer ones are cut."""
    return timestamp.seconds * 1_000_000 + timestamp.nanos // 1000


def request_key(
    rpc: str, actor: Actor, request: Message, request_id: str, session_id: str = ""
) -> RequestKey | None:
    """What makes a repeat of the request known; None if its caller does not ask for it."""
    if not request_id:
        return None
    # The same fields serialise alike: the contract has no map in a request.
    digest = sha256(request.SerializeToString()).digest()
    return RequestKey(rpc, actor, session_id, request_id, digest)


def _output(message: execution_pb2.Output) -> Output | None:
    kind = message.WhichOneof("content")
    if kind is None:
        return None
    content = message.text.encode() if kind == "text" else message.binary
    return Output(content, len(content), sha256(content).digest())


def new_execution(
    request: recording_service.RecordExecutionRequest, actor: Actor, new_id: NewId
) -> NewExecution:
    """A command that has run."""
    session_id = request.session_id
    return NewExecution(
        session_id,
        new_id("exec_"),
        request.command,
        request.capability,
        request.step,
        request.exit_code if request.HasField("exit_code") else None,
        time_of(request.start_time),
        time_of(request.end_time) if request.HasField("end_time") else None,
        actor,
        _output(request.output) if request.HasField("output") else None,
        _output(request.error_output) if request.HasField("error_output") else None,
        request_key("RecordExecution", actor, request, request.request_id, session_id),
    )


def begun_execution(
    request: recording_service.BeginExecutionRequest, actor: Actor, new_id: NewId
) -> NewExecution:
    """A command that is about to run."""
    session_id = request.session_id
    return NewExecution(
        session_id,
        new_id("exec_"),
        request.command,
        request.capability,
        request.step,
        None,
        time_of(request.start_time),
        None,
        actor,
        None,
        None,
        request_key("BeginExecution", actor, request, request.request_id, session_id),
    )


def new_insight(request: recording_service.SaveInsightRequest) -> NewInsight:
    """A finding."""
    return NewInsight(
        category=request.category,
        key=request.key,
        value=request.value,
        severity=_SEVERITIES[request.severity],
        evidence=request.evidence,
        affected_resources=tuple(request.affected_resources),
        remediation_steps=tuple(request.remediation_steps),
        execution_sequences=tuple(request.execution_sequences),
    )


def session_filter(request: session_service.ListSessionsRequest) -> SessionFilter:
    """Which sessions are asked for."""
    return SessionFilter(
        agent_id=request.agent_id or None,
        hostname=request.hostname or None,
        playbook=request.playbook or None,
        status=_STATUSES.get(request.status),
        started_from=time_of(request.started_from) if request.HasField("started_from") else None,
        started_before=(
            time_of(request.started_before) if request.HasField("started_before") else None
        ),
    )
