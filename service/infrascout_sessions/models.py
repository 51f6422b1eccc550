"""What the service keeps: immutable records, and ids.

Every time is an int: microseconds since 1970-01-01T00:00:00Z. The records are named tuples, built
from rows by position (a frozen dataclass of twenty fields takes five times as long to build, and a
stream of executions builds hundreds of thousands a second).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cached_property, lru_cache
from typing import NamedTuple

import uuid_utils

from infrascout_sessions.lifecycle import Status

Clock = Callable[[], int]
"""Gives the time of now."""

NewId = Callable[[str], str]
"""Gives a new id that begins with the given prefix and sorts by time."""


def system_clock() -> int:
    """The machine's time, in microseconds since the epoch."""
    return time.time_ns() // 1000


def new_id(prefix: str) -> str:
    """A prefix and the lower-case hex of a UUIDv7 (RFC 9562)."""
    return prefix + uuid_utils.uuid7().hex


class ActorKind(StrEnum):
    """Whether a person or a program acts."""

    HUMAN = "human"
    SERVICE = "service"


class Actor(NamedTuple):
    """Who did it; in the database `kind:subject`."""

    kind: ActorKind
    subject: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.subject}"


@lru_cache(maxsize=4096)
def actor_from_text(text: str) -> Actor:
    """The inverse of `str(actor)`."""
    kind, _, subject = text.partition(":")
    return Actor(ActorKind(kind), subject)


SERVER = Actor(ActorKind.SERVICE, "infrascout-sessions")
"""Who does what the server does by itself."""


class Role(StrEnum):
    """What a caller may do; each RPC asks for one of these (`access.proto`)."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    RECORDER = "recorder"
    REVIEWER = "reviewer"
    REGISTRAR = "registrar"


HUMANS_ONLY = frozenset({Role.REVIEWER})
"""What no program has, whatever its credentials say."""


class Proof(StrEnum):
    """How a caller has proved who it is."""

    NONE = "none"
    TOKEN = "token"  # noqa: S105 - no password
    JWT = "jwt"
    CERTIFICATE = "certificate"


@dataclass(frozen=True)
class Principal:
    """A caller: who it is, what it may do, and how that is known."""

    subject: str
    kind: ActorKind
    roles: frozenset[Role]
    proof: Proof

    @cached_property
    def actor(self) -> Actor:
        """Who is put on record."""
        return Actor(self.kind, self.subject)


LOCAL = Principal("local", ActorKind.SERVICE, frozenset(Role) - HUMANS_ONLY, Proof.NONE)
"""A caller without a proof, on a loopback address without any identity configured."""

RESERVED_SUBJECTS = frozenset({LOCAL.subject, SERVER.subject})
"""What nobody else may be called."""


class NewToken(NamedTuple):
    """A bearer token to issue; only its digest is kept. No `expire_time` is for ever."""

    digest: bytes
    name: str
    kind: ActorKind
    roles: frozenset[Role]
    expire_time: int | None


class Token(NamedTuple):
    """A bearer token as the database has it. `last_use_time` is to the minute."""

    digest: bytes
    name: str
    kind: ActorKind
    roles: frozenset[Role]
    create_time: int
    expire_time: int | None
    last_use_time: int | None
    revoke_time: int | None


class RequestKey(NamedTuple):
    """Identifies a write that may be repeated, and what it said.

    `session_id` is empty where the request names none; `digest` is of the whole request.
    """

    rpc: str
    actor: Actor
    session_id: str
    request_id: str
    digest: bytes


class Agent(NamedTuple):
    """The program on a host that a session assesses."""

    agent_id: str
    hostname: str
    os: str
    capabilities: tuple[str, ...]
    register_time: int
    update_time: int


class Independence(StrEnum):
    """Whether a reviewer must have had no part in the session."""

    REQUIRED = "required"
    NONE = "none"


class StatusChange(NamedTuple):
    """A step of a session's lifecycle."""

    status: Status
    time: int
    actor: Actor
    reason: str


class Session(NamedTuple):
    """A scoped assessment run against one agent."""

    session_id: str
    agent_id: str
    hostname: str
    playbook: str
    description: str
    status: Status
    status_reason: str
    execution_count: int
    failed_execution_count: int
    insight_count: int
    summary: str
    start_time: int
    start_actor: Actor
    last_activity_time: int
    submit_time: int | None
    submit_actor: Actor | None
    end_time: int | None
    end_actor: Actor | None
    review_comment: str
    review_independence: Independence | None

    def transitions(self) -> list[StatusChange]:
        """The steps so far, oldest first; the lifecycle passes each status at most once."""
        steps = [StatusChange(Status.RUNNING, self.start_time, self.start_actor, "")]
        if self.submit_time is not None and self.submit_actor is not None:
            steps.append(
                StatusChange(Status.PENDING_REVIEW, self.submit_time, self.submit_actor, "")
            )
        if self.end_time is not None and self.end_actor is not None:
            steps.append(
                StatusChange(self.status, self.end_time, self.end_actor, self.status_reason)
            )
        return steps


class NewSession(NamedTuple):
    """A session to start."""

    session_id: str
    agent_id: str
    playbook: str
    description: str
    actor: Actor
    request: RequestKey | None


class Step(NamedTuple):
    """A step of a session's lifecycle to take; `text` is its summary or its reason."""

    session_id: str
    text: str
    actor: Actor
    request: RequestKey | None


class Output(NamedTuple):
    """What a command wrote to one stream.

    `head` is all of it or its beginning, `size_bytes` the size of the whole, `sha256` of the whole
    once the execution has finished.
    """

    head: bytes
    size_bytes: int
    sha256: bytes | None


class Execution(NamedTuple):
    """A command executed in a session."""

    session_id: str
    sequence: int
    execution_id: str
    command: str
    capability: str
    step: str
    exit_code: int | None
    start_time: int
    end_time: int | None
    record_time: int
    finish_record_time: int | None
    actor: Actor
    output: Output | None
    error_output: Output | None


class OutputStream(IntEnum):
    """Which of a command's outputs; the value is the contract's and the database's."""

    STDOUT = 1
    STDERR = 2


class NewExecution(NamedTuple):
    """A command that has run or, without an end, begins to, as its recorder tells it."""

    session_id: str
    execution_id: str
    command: str
    capability: str
    step: str
    exit_code: int | None
    start_time: int
    end_time: int | None
    actor: Actor
    output: Output | None
    error_output: Output | None
    request: RequestKey | None


class Severity(StrEnum):
    """How much a finding matters."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class NewInsight(NamedTuple):
    """A finding, as its author tells it; `category` and `key` identify it in its session."""

    category: str
    key: str
    value: str
    severity: Severity
    evidence: str
    affected_resources: tuple[str, ...]
    remediation_steps: tuple[str, ...]
    execution_sequences: tuple[int, ...]


class Insight(NamedTuple):
    """One revision of a finding; `position` is its place in the session's order of first saves."""

    session_id: str
    position: int
    revision: int
    content: NewInsight
    create_time: int
    update_time: int
    actor: Actor


class SessionFilter(NamedTuple):
    """Which sessions a list shows; None does not filter. The start times are a half-open range."""

    agent_id: str | None = None
    hostname: str | None = None
    playbook: str | None = None
    status: Status | None = None
    started_from: int | None = None
    started_before: int | None = None


class SessionPosition(NamedTuple):
    """Where a page of sessions ended."""

    start_time: int
    session_id: str
