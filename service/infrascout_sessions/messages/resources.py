"""Records of the domain as the messages of the contract."""

from collections.abc import Iterable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from infrascout.sessions.v1 import (
    actor_pb2,
    agent_pb2,
    execution_pb2,
    insight_pb2,
    session_pb2,
    session_service_pb2,
)
from infrascout_sessions.lifecycle import Status
from infrascout_sessions.models import (
    Actor,
    ActorKind,
    Agent,
    Execution,
    Independence,
    Insight,
    Output,
    Session,
    Severity,
)

# The stubs give the numbers of an enum types of their own, and Value() plain ints.
STATUS_NUMBERS: dict[Status, Any] = {
    status: session_pb2.SessionStatus.Value(f"SESSION_STATUS_{status.name}") for status in Status
}
SEVERITY_NUMBERS: dict[Severity, Any] = {
    severity: insight_pb2.Severity.Value(f"SEVERITY_{severity.name}") for severity in Severity
}
_ACTOR_KIND_NUMBERS: dict[ActorKind, Any] = {
    kind: actor_pb2.ActorKind.Value(f"ACTOR_KIND_{kind.name}") for kind in ActorKind
}
_INDEPENDENCE_NUMBERS: dict[Independence, Any] = {
    independence: session_pb2.ReviewIndependence.Value(f"REVIEW_INDEPENDENCE_{independence.name}")
    for independence in Independence
}


def _put_time(message: Timestamp, time: int) -> None:
    message.seconds, microseconds = divmod(time, 1_000_000)
    message.nanos = microseconds * 1000


def _put_actor(message: actor_pb2.Actor, actor: Actor) -> None:
    message.subject = actor.subject
    message.kind = _ACTOR_KIND_NUMBERS[actor.kind]


def put_agent(message: agent_pb2.Agent, agent: Agent) -> None:
    """Fill a message with an agent."""
    message.agent_id = agent.agent_id
    message.hostname = agent.hostname
    message.os = agent.os
    message.capabilities.extend(agent.capabilities)
    _put_time(message.register_time, agent.register_time)
    _put_time(message.update_time, agent.update_time)


def put_session(message: session_pb2.Session, session: Session) -> None:
    """Fill a message with a session."""
    message.session_id = session.session_id
    message.agent_id = session.agent_id
    message.hostname = session.hostname
    message.playbook = session.playbook
    message.description = session.description
    message.status = STATUS_NUMBERS[session.status]
    message.status_reason = session.status_reason
    message.execution_count = session.execution_count
    message.failed_execution_count = session.failed_execution_count
    message.insight_count = session.insight_count
    message.summary = session.summary
    _put_time(message.start_time, session.start_time)
    _put_time(message.last_activity_time, session.last_activity_time)
    if session.submit_time is not None:
        _put_time(message.submit_time, session.submit_time)
    if session.end_time is not None:
        _put_time(message.end_time, session.end_time)
    for step in session.transitions():
        transition = message.transitions.add()
        transition.status = STATUS_NUMBERS[step.status]
        _put_time(transition.time, step.time)
        _put_actor(transition.actor, step.actor)
        transition.reason = step.reason
    if session.status is Status.COMPLETED and session.end_time and session.end_actor:
        _put_actor(message.review.reviewer, session.end_actor)
        message.review.comment = session.review_comment
        _put_time(message.review.time, session.end_time)
        if session.review_independence is not None:
            message.review.independence = _INDEPENDENCE_NUMBERS[session.review_independence]


def _as_text(head: bytes, truncated: bool) -> str | None:
    """The text that the bytes are, without a character that the end cuts; None if they are none."""
    try:
        return head.decode()
    except UnicodeDecodeError as error:
        if truncated and error.reason == "unexpected end of data" and error.start >= len(head) - 3:
            return head[: error.start].decode()
        return None


def _put_output(message: execution_pb2.Output, output: Output, maximum_bytes: int) -> None:
    head = output.head[:maximum_bytes]
    truncated = len(head) < output.size_bytes
    if maximum_bytes:
        text = _as_text(head, truncated)
        if text is None:
            message.binary = head
        else:
            message.text = text
    message.size_bytes = output.size_bytes
    message.truncated = truncated
    if output.sha256 is not None:
        message.sha256 = output.sha256.hex()


def put_execution(
    message: execution_pb2.Execution, execution: Execution, maximum_output_bytes: int
) -> None:
    """Fill a message with an execution and up to so many bytes of each of its outputs."""
    message.execution_id = execution.execution_id
    message.session_id = execution.session_id
    message.sequence = execution.sequence
    message.command = execution.command
    message.capability = execution.capability
    message.step = execution.step
    if execution.finish_record_time is None:
        message.state = execution_pb2.EXECUTION_STATE_UNFINISHED
    elif execution.exit_code is None:
        message.state = execution_pb2.EXECUTION_STATE_KILLED
    else:
        message.state = execution_pb2.EXECUTION_STATE_EXITED
        message.exit_code = execution.exit_code
    if execution.output is not None:
        _put_output(message.output, execution.output, maximum_output_bytes)
    if execution.error_output is not None:
        _put_output(message.error_output, execution.error_output, maximum_output_bytes)
    _put_time(message.start_time, execution.start_time)
    if execution.end_time is not None:
        _put_time(message.end_time, execution.end_time)
    _put_time(message.record_time, execution.record_time)
    if execution.finish_record_time == execution.record_time:
        message.finish_record_time.CopyFrom(message.record_time)
    elif execution.finish_record_time is not None:
        _put_time(message.finish_record_time, execution.finish_record_time)
    _put_actor(message.actor, execution.actor)


def executions_response(
    executions: Iterable[Execution], maximum_output_bytes: int
) -> session_service_pb2.ListExecutionsResponse:
    """One message of a list of executions."""
    response = session_service_pb2.ListExecutionsResponse()
    for execution in executions:
        put_execution(response.executions.add(), execution, maximum_output_bytes)
    return response


def put_insight(message: insight_pb2.Insight, insight: Insight) -> None:
    """Fill a message with a revision of an insight."""
    content = insight.content
    message.session_id = insight.session_id
    message.category = content.category
    message.key = content.key
    message.value = content.value
    message.severity = SEVERITY_NUMBERS[content.severity]
    message.evidence = content.evidence
    message.affected_resources.extend(content.affected_resources)
    message.remediation_steps.extend(content.remediation_steps)
    message.execution_sequences.extend(content.execution_sequences)
    message.revision = insight.revision
    _put_time(message.create_time, insight.create_time)
    _put_time(message.update_time, insight.update_time)
    _put_actor(message.actor, insight.actor)
