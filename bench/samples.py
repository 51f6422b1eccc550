"""The content that both servers, the requests and the raw SQLite loop have in common.

Everything of one kind has one size, so that messages of the two servers compare.
"""

import hashlib
from collections.abc import Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from infrascout.sessions.v1 import (
    actor_pb2,
    agent_service_pb2,
    execution_pb2,
    recording_service_pb2,
    session_pb2,
    session_service_pb2,
)

PLAYBOOK = "linux-baseline"
DESCRIPTION = "Quarterly baseline of the build hosts, requested in change 4711."
SUMMARY = "Two listening services without an owner; SSH allows passwords; the disks are healthy."
CAPABILITY = "shell"
COMMAND = "ss --tcp --listening --numeric --processes | sort --key=4"
OUTPUT = ("LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:sshd\n" * 23)[:1024]  # 1 KiB
OUTPUT_SHA256 = hashlib.sha256(OUTPUT.encode()).hexdigest()
PAGE_TOKEN = "t" * 94
TIME_SECONDS = 1_767_225_600
TIME = Timestamp(seconds=TIME_SECONDS, nanos=123_456_000)
LOCAL = actor_pb2.Actor(subject="local", kind=actor_pb2.ACTOR_KIND_SERVICE)


def agent_id(batch: str, n: int) -> str:
    return f"ag_{batch}{n:08d}"


def hostname(n: int) -> str:
    return f"host-{n:08d}.example.net"


def session_id(n: int) -> str:
    return f"sess_{n:032x}"


def execution_id(n: int) -> str:
    return f"exec_{n:032x}"


def request_id(batch: str, n: int) -> str:
    return f"{batch}-{n:024d}"


def register_agent(batch: str, n: int) -> agent_service_pb2.RegisterAgentRequest:
    return agent_service_pb2.RegisterAgentRequest(
        agent_id=agent_id(batch, n),
        hostname=hostname(n),
        os="Debian GNU/Linux 13",
        capabilities=[CAPABILITY],
        request_id=request_id(batch, n),
    )


def start_session(batch: str, n: int) -> session_service_pb2.StartSessionRequest:
    return session_service_pb2.StartSessionRequest(
        agent_id=agent_id(batch, n),
        playbook=PLAYBOOK,
        description=DESCRIPTION,
        request_id=request_id(batch, n),
    )


def submit_session(batch: str, n: int, session: str) -> session_service_pb2.SubmitSessionRequest:
    return session_service_pb2.SubmitSessionRequest(
        session_id=session, summary=SUMMARY, request_id=request_id(batch, n)
    )


def record_execution(
    batch: str, n: int, session: str
) -> recording_service_pb2.RecordExecutionRequest:
    return recording_service_pb2.RecordExecutionRequest(
        session_id=session,
        command=COMMAND,
        capability=CAPABILITY,
        output=execution_pb2.Output(text=OUTPUT),
        exit_code=0,
        start_time=TIME,
        end_time=TIME,
        request_id=request_id(batch, n),
    )


def list_sessions() -> session_service_pb2.ListSessionsRequest:
    return session_service_pb2.ListSessionsRequest(limit=20)


def record_executions(
    batch: str, messages: int, rows: int, session: str
) -> Iterator[recording_service_pb2.RecordExecutionsRequest]:
    for first in range(0, messages * rows, rows):
        yield recording_service_pb2.RecordExecutionsRequest(
            executions=[record_execution(batch, first + i, session) for i in range(rows)]
        )


def session(*statuses: session_pb2.SessionStatus) -> session_pb2.Session:
    """A session as the service answers it after these transitions."""
    submitted = statuses[-1] == session_pb2.SESSION_STATUS_PENDING_REVIEW
    return session_pb2.Session(
        session_id=session_id(0),
        agent_id=agent_id("0000", 0),
        hostname=hostname(0),
        playbook=PLAYBOOK,
        description=DESCRIPTION,
        status=statuses[-1],
        summary=SUMMARY if submitted else "",
        start_time=TIME,
        last_activity_time=TIME,
        submit_time=TIME if submitted else None,
        transitions=[
            session_pb2.Transition(status=status, time=TIME, actor=LOCAL) for status in statuses
        ],
    )


def execution(n: int) -> execution_pb2.Execution:
    """A recorded execution as the service answers it."""
    return execution_pb2.Execution(
        execution_id=execution_id(n),
        session_id=session_id(0),
        sequence=n,
        state=execution_pb2.EXECUTION_STATE_EXITED,
        command=COMMAND,
        capability=CAPABILITY,
        output=execution_pb2.Output(
            text=OUTPUT, size_bytes=len(OUTPUT.encode()), sha256=OUTPUT_SHA256
        ),
        exit_code=0,
        start_time=TIME,
        end_time=TIME,
        record_time=TIME,
        finish_record_time=TIME,
        actor=LOCAL,
    )
