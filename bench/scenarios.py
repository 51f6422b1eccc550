"""What is measured: one row an RPC, with how its requests are prepared on our server."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from google.protobuf.message import Message

from bench import generator, samples
from bench.servers import Server
from infrascout.sessions.v1 import session_service_pb2

PACKAGE = "/infrascout.sessions.v1."
READ_SESSIONS = 100
RECORDED_SESSIONS = 64
PREPARED_ROWS = 500


class Preparation:
    """Brings our server into the state that a measurement needs, through its own API."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self._folder = folder
        self._batches = (f"{n:04d}" for n in count(1))

    def batch(self) -> str:
        """A name that makes ids of this measurement differ from all others."""
        return next(self._batches)

    def agents(self, batch: str, n: int) -> None:
        self.send(
            "AgentService/RegisterAgent", (samples.register_agent(batch, i) for i in range(n))
        )

    def sessions(self, batch: str, n: int) -> list[str]:
        """Ids of new sessions, each of an agent of its own."""
        self.agents(batch, n)
        requests = (samples.start_session(batch, i) for i in range(n))
        replies = self.send("SessionService/StartSession", requests)
        parse = session_service_pb2.StartSessionResponse.FromString
        return [parse(reply).session.session_id for reply in replies]

    def executions(self, n: int) -> str:
        """A new session with so many executions of 1 KiB."""
        batch = self.batch()
        [session] = self.sessions(batch, 1)
        # Five hundred a message, which is far below the limit of 4 MiB.
        messages = samples.record_executions(batch, -(-n // PREPARED_ROWS), PREPARED_ROWS, session)
        generator.send(
            self.server.address,
            f"{PACKAGE}RecordingService/RecordExecutions",
            (message.SerializeToString() for message in messages),
            self._folder,
            mode="bidi",
        )
        return session

    def send(self, method: str, requests: Iterable[Message], *, callers: int = 64) -> list[bytes]:
        """Send each request once; the replies come in any order."""
        messages = (request.SerializeToString() for request in requests)
        return generator.send(
            self.server.address, PACKAGE + method, messages, self._folder, callers=callers
        )


def _get_session(preparation: Preparation, _: int) -> Iterable[Message]:
    for session in preparation.sessions(preparation.batch(), READ_SESSIONS):
        yield session_service_pb2.GetSessionRequest(session_id=session)


def _list_sessions(preparation: Preparation, _: int) -> Iterable[Message]:
    preparation.sessions(preparation.batch(), READ_SESSIONS)
    yield samples.list_sessions()


def _record_execution(preparation: Preparation, n: int) -> Iterable[Message]:
    batch = preparation.batch()
    sessions = preparation.sessions(batch, RECORDED_SESSIONS)
    for i in range(n):
        yield samples.record_execution(batch, i, sessions[i % RECORDED_SESSIONS])


def _start_session(preparation: Preparation, n: int) -> Iterable[Message]:
    batch = preparation.batch()
    preparation.agents(batch, n)
    for i in range(n):
        yield samples.start_session(batch, i)


def _submit_session(preparation: Preparation, n: int) -> Iterable[Message]:
    batch = preparation.batch()
    for i, session in enumerate(preparation.sessions(batch, n)):
        yield samples.submit_session(batch, i, session)


@dataclass(frozen=True)
class Scenario:
    method: str
    # Given how many requests are needed at most, yields them.
    requests: Callable[[Preparation, int], Iterable[Message]]
    # Ours gets each request once; else, and on the no-op server, they are cycled.
    once: bool

    @property
    def path(self) -> str:
        return PACKAGE + self.method


SCENARIOS = {
    "GetSession": Scenario("SessionService/GetSession", _get_session, once=False),
    "ListSessions": Scenario("SessionService/ListSessions", _list_sessions, once=False),
    "RecordExecution": Scenario("RecordingService/RecordExecution", _record_execution, once=True),
    "StartSession": Scenario("SessionService/StartSession", _start_session, once=True),
    "SubmitSession": Scenario("SessionService/SubmitSession", _submit_session, once=True),
}
