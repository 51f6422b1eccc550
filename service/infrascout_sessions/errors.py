"""Why a call is refused: typed errors that carry data.

A message says what is wrong, with the ids, and what to do next. `messages.refusals` maps each
type to a status code and a reason; the public attributes become the metadata of its ErrorInfo.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from infrascout_sessions.lifecycle import TRANSITIONS, Action, Status


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not a fault
    """A call that is answered with an error the contract names."""

    @property
    def message(self) -> str:
        """The text for the caller."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.message


class Violation(NamedTuple):
    """One field of a request that breaks a rule; `field` is its path in the request."""

    field: str
    description: str


@dataclass(eq=False)
class InvalidRequest(Refusal):
    """Fields break the rules of the contract."""

    violations: Sequence[Violation]

    @property
    def message(self) -> str:
        first = self.violations[0]
        where = f"{first.field}: " if first.field else ""
        more = f" (and {len(self.violations) - 1} more)" if len(self.violations) > 1 else ""
        return f"{where}{first.description}{more}"


class PageTokenInvalid(InvalidRequest):
    """A page token that this service did not give for these filters."""

    def __init__(self, description: str) -> None:
        super().__init__((Violation("page_token", description),))


@dataclass(eq=False)
class AgentNotFound(Refusal):
    """No agent has this id."""

    agent_id: str

    @property
    def message(self) -> str:
        return f"no agent {self.agent_id} is registered: register it with RegisterAgent first"


@dataclass(eq=False)
class SessionNotFound(Refusal):
    """No session has this id."""

    session_id: str

    @property
    def message(self) -> str:
        return f"there is no session {self.session_id}: ListSessions shows those that exist"


@dataclass(eq=False)
class ExecutionNotFound(Refusal):
    """The session has no execution with this sequence."""

    session_id: str
    sequence: int

    @property
    def message(self) -> str:
        return (
            f"session {self.session_id} has no execution {self.sequence}: "
            "ListExecutions shows those it has"
        )


@dataclass(eq=False)
class AgentBusy(Refusal):
    """The agent has a running session."""

    agent_id: str
    session_id: str

    @property
    def message(self) -> str:
        return (
            f"agent {self.agent_id} already runs session {self.session_id}: "
            "submit that one before starting another"
        )


@dataclass(eq=False)
class IllegalTransition(Refusal):
    """The lifecycle has no such step from here."""

    session_id: str
    status: Status
    action: Action

    @property
    def message(self) -> str:
        sources = ", ".join(sorted(TRANSITIONS[self.action].sources))
        return (
            f"session {self.session_id} is {self.status}: {self.action} needs a session that is "
            f"{sources}"
        )


@dataclass(eq=False)
class SessionNotRunning(Refusal):
    """Nothing is recorded in a session that is not running."""

    session_id: str
    status: Status

    @property
    def message(self) -> str:
        return (
            f"session {self.session_id} is {self.status} and takes no more records: "
            "start another one with StartSession"
        )


@dataclass(eq=False)
class ExecutionFinished(Refusal):
    """The execution has ended, and otherwise than it is told now."""

    session_id: str
    sequence: int

    @property
    def message(self) -> str:
        return (
            f"execution {self.sequence} of session {self.session_id} is finished: "
            "GetExecution shows how it ended; begin another one for another run"
        )


@dataclass(eq=False)
class OutputTooLarge(Refusal):
    """The execution's outputs would pass the limit."""

    session_id: str
    sequence: int
    maximum_bytes: int

    @property
    def message(self) -> str:
        return (
            f"the outputs of execution {self.sequence} of session {self.session_id} would pass "
            f"{self.maximum_bytes:,} bytes: what came before is kept, finish it with that"
        )


@dataclass(eq=False)
class OutputOffsetMismatch(Refusal):
    """The chunk does not continue what is stored."""

    size_bytes: int

    @property
    def message(self) -> str:
        return (
            "the chunk does not continue what is stored, nor repeat a part of it: "
            f"go on from offset {self.size_bytes}"
        )


@dataclass(eq=False)
class OutputOffsetBeyondEnd(Refusal):
    """There is nothing at the offset."""

    size_bytes: int

    @property
    def message(self) -> str:
        return f"the offset is beyond the end: the output has {self.size_bytes} bytes"


@dataclass(eq=False)
class RequestIdReused(Refusal):
    """The request id was used for another message."""

    request_id: str

    @property
    def message(self) -> str:
        return (
            f"request_id {self.request_id} was used for a request with other content: "
            "use a new one for each request and the same one only to repeat it unchanged"
        )


class ProofMissingOrInvalid(Refusal):
    """Nobody knows who calls.

    The cause, which is for the log alone, says what is wrong with the proof.
    """

    @property
    def message(self) -> str:
        return (
            "the call has no valid proof of who makes it: send the metadata "
            "`authorization: Bearer …` once, with a token or JWT that is valid here"
        )


@dataclass(eq=False)
class RoleMissing(Refusal):
    """The caller may not call this RPC; `role` is as the contract names it."""

    subject: str
    role: str

    @property
    def message(self) -> str:
        return (
            f"{self.subject} lacks {self.role}, which this call takes: ask whoever operates this "
            "service for it"
        )


@dataclass(eq=False)
class ReviewerNotHuman(Refusal):
    """A program would complete a session."""

    subject: str

    @property
    def message(self) -> str:
        return (
            f"{self.subject} is a service, and only a human completes a session: call with a "
            "human's proof; `infrascout-sessions token create NAME --human --role reviewer` "
            "on the server's machine makes one"
        )


@dataclass(eq=False)
class ReviewerNotIndependent(Refusal):
    """The reviewer took part in the session; `involvement` says how."""

    session_id: str
    subject: str
    involvement: str

    @property
    def message(self) -> str:
        how = {"recorded": "recorded in"}.get(self.involvement, self.involvement)
        return (
            f"{self.subject} {how} session {self.session_id} and cannot review it: "
            "another human with the role reviewer has to"
        )


@dataclass(eq=False)
class QuotaExceeded(Refusal):
    """The caller is at a bound; `quota` names it."""

    quota: str

    @property
    def message(self) -> str:
        what = {
            "calls": "as many calls are under way as this server takes",
            "calls_of_caller": "as many calls of this caller are under way as it may have",
            "streams_of_caller": "as many streams of this caller are open as it may have",
            "failed_proofs": "too many proofs from this address were not valid",
        }[self.quota]
        return f"{what}: repeat the call after a short while"


class StorageFull(Refusal):
    """The database has no room."""

    @property
    def message(self) -> str:
        return "the storage is full and nothing was written: make room, then repeat the request"


class Overloaded(Refusal):
    """More work is waiting than the service accepts."""

    @property
    def message(self) -> str:
        return "too many requests are waiting: repeat this one after a short while"


class DatabaseUnavailable(Refusal):
    """The database does not answer."""

    @property
    def message(self) -> str:
        return (
            "the database is not available: repeat the request, with the same request_id "
            "if it writes"
        )


class ShuttingDown(Refusal):
    """The server is stopping."""

    @property
    def message(self) -> str:
        return "the server is shutting down: repeat the request on another connection"
