"""Random operations against a model in plain Python, and page tokens that are random or spoilt."""

import asyncio
import json
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, product
from string import ascii_lowercase, ascii_uppercase
from typing import Any, ClassVar

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from harness import (
    LOCAL,
    Client,
    at,
    get_session,
    list_executions,
    list_insights,
    refused,
    running_session,
    serving,
    submit,
)
from infrascout.sessions.v1 import (
    agent_pb2,
    agent_service_pb2,
    execution_pb2,
    insight_pb2,
    recording_service_pb2,
    session_pb2,
    session_service_pb2,
)
from infrascout_sessions.errors import PageTokenInvalid
from infrascout_sessions.messages import page_tokens

BOUNDED = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

RUNNING = session_pb2.SESSION_STATUS_RUNNING

SWAP_CASE = str.maketrans(ascii_lowercase + ascii_uppercase, ascii_uppercase + ascii_lowercase)


class Server:
    """A server and its client for code that is not async."""

    def __init__(self, runner: asyncio.Runner, client: Client) -> None:
        self._runner = runner
        self.client = client

    def run(self, call: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await call

        return self._runner.run(awaited())

    def send(self, request: Any) -> Any:
        """What the RPC of this request answers."""
        return self.run(self._call(request))

    def refuses(self, request: Any, code: grpc.StatusCode, reason: str, /, **metadata: str) -> None:
        self.run(refused(self._call(request), code, reason, **metadata))

    async def _call(self, request: Any) -> Any:
        rpc = request.DESCRIPTOR.name.removesuffix("Request")
        stubs = (self.client.agents, self.client.sessions, self.client.recording)
        [call] = [getattr(stub, rpc) for stub in stubs if hasattr(stub, rpc)]
        return await call(request)


@contextmanager
def server(database_url: str) -> Iterator[Server]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        client = runner.run(stack.enter_async_context(serving(database_url)))
        try:
            yield Server(runner, client)
        finally:
            runner.run(stack.aclose())


# The model.


@dataclass
class ModelSession:
    """A session as it must be."""

    message: session_pb2.Session
    executions: list[execution_pb2.Execution] = field(default_factory=list)
    insights: dict[tuple[str, str], list[insight_pb2.Insight]] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        return self.message.status == RUNNING

    @property
    def status(self) -> str:
        return session_pb2.SessionStatus.Name(self.message.status)

    def happens(self, time: Timestamp) -> None:
        """Something was written at this time, which is not before what was written last."""
        assert time.ToMicroseconds() >= self.message.last_activity_time.ToMicroseconds()
        self.message.last_activity_time.CopyFrom(time)

    def enters(self, status: Any, time: Timestamp, reason: str = "") -> None:
        self.message.status = status
        self.message.transitions.add(status=status, time=time, actor=LOCAL, reason=reason)


@dataclass
class Write:
    """A write with a request_id, acknowledged; the session is None for an agent's."""

    request: Any
    session: ModelSession | None
    sequence: int = 0


def content(output: str | bytes | None) -> execution_pb2.Output | None:
    """What a writer sends."""
    if output is None:
        return None
    kind = "text" if isinstance(output, str) else "binary"
    return execution_pb2.Output(**{kind: output})  # type: ignore[arg-type]


def captured(output: str | bytes | None) -> bytes | None:
    return output.encode() if isinstance(output, str) else output


def shown(output: execution_pb2.Output) -> bytes:
    """What a reader finds: text exactly if it is valid UTF-8."""
    if output.WhichOneof("content") == "text":
        return output.text.encode()
    with pytest.raises(UnicodeDecodeError):
        output.binary.decode()
    return output.binary


# Which of the sessions: mostly the one that runs and was started last.
INDEX = st.sampled_from([-1, -1, -1, -1, 0, 1, 2, 3, 4])
OUTPUTS: list[str | bytes | None] = [None, "", "é\0\x1b", b"\xff\0", b"plain", "x" * 5000]
# None, one of its own, or one that was used in another scope or for a refused call.
REQUEST_ID = st.sampled_from(["", "new", "borrowed"])


class Operations(RuleBasedStateMachine):
    """Each rule does one thing to the server and to the model, and compares."""

    server: ClassVar[Server]
    numbers: ClassVar[Iterator[int]]

    def __init__(self) -> None:
        super().__init__()
        # One server serves all examples: each has agents, hosts and a playbook of its own.
        self.example = next(self.numbers)
        self.agents: dict[str, agent_pb2.Agent] = {}
        self.sessions: list[ModelSession] = []
        self.writes: list[Write] = []
        self.request_ids: dict[str, set[tuple[str, str]]] = {}

    def request_id(self, wanted: str, rpc: str, session_id: str = "") -> str:
        if not wanted:
            return ""
        free = [one for one, scopes in self.request_ids.items() if (rpc, session_id) not in scopes]
        if wanted == "borrowed" and free:
            return free[0]
        request_id = f"request {next(self.numbers)}"
        self.request_ids[request_id] = set()
        return request_id

    def session(self, index: int) -> ModelSession:
        running = [session for session in self.sessions if session.running]
        if index < 0 and running:
            return running[-1]
        return self.sessions[index % len(self.sessions)]

    def written(self, request: Any, session: ModelSession | None, sequence: int = 0) -> None:
        if request.request_id:
            rpc = request.DESCRIPTOR.name.removesuffix("Request")
            scope = session.message.session_id if session and rpc != "StartSession" else ""
            self.request_ids[request.request_id].add((rpc, scope))
            self.writes.append(Write(request, session, sequence))

    # Agents.

    @initialize()
    def first_session(self) -> None:
        self.register(0, "web", "new")
        self.start(0, "", "new")
        self.record_one(-1, 0, "Linux", None, "new")

    @rule(
        agent=st.integers(0, 2),
        hostname=st.sampled_from(["web", "WEB", "dé"]),
        request_id=REQUEST_ID,
    )
    def register(self, agent: int, hostname: str, request_id: str) -> None:
        request = agent_service_pb2.RegisterAgentRequest(
            agent_id=f"ag_{self.example}_{agent}",
            hostname=f"{hostname}-{self.example}",
            capabilities=["shell"],
            request_id=self.request_id(request_id, "RegisterAgent"),
        )
        made = self.server.send(request).agent
        before = self.agents.get(request.agent_id, made)
        assert made == agent_pb2.Agent(
            agent_id=request.agent_id,
            hostname=request.hostname,
            capabilities=["shell"],
            register_time=before.register_time,
            update_time=made.update_time,
        )
        assert made.update_time.ToMicroseconds() >= before.update_time.ToMicroseconds()
        self.agents[request.agent_id] = made
        self.written(request, None)

    @rule(hostname=st.sampled_from(["web", "WEB", "dé", "DÉ"]), limit=st.integers(1, 3))
    def list_agents(self, hostname: str, limit: int) -> None:
        name = f"{hostname}-{self.example}"
        wanted = [
            self.agents[agent_id]
            for agent_id in sorted(self.agents)
            if self.agents[agent_id].hostname in {name, name.translate(SWAP_CASE)}
        ]
        request = agent_service_pb2.ListAgentsRequest(hostname=name, limit=limit)
        found: list[agent_pb2.Agent] = []
        while True:
            response = self.server.send(request)
            found += response.agents
            assert len(response.agents) == limit or not response.next_page_token
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
        assert found == wanted

    # Sessions.

    @rule(
        agent=st.sampled_from([0, 0, 1, 2, 3]),
        description=st.sampled_from(["", "é"]),
        request_id=REQUEST_ID,
    )
    def start(self, agent: int, description: str, request_id: str) -> None:
        agent_id = f"ag_{self.example}_{agent}"
        request = session_service_pb2.StartSessionRequest(
            agent_id=agent_id,
            playbook=f"playbook {self.example}",
            description=description,
            request_id=self.request_id(request_id, "StartSession"),
        )
        busy = [one for one in self.sessions if one.running and one.message.agent_id == agent_id]
        if agent_id not in self.agents:
            self.server.refuses(
                request, grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND", agent_id=agent_id
            )
        elif busy:
            self.server.refuses(
                *(request, grpc.StatusCode.FAILED_PRECONDITION, "AGENT_BUSY"),
                agent_id=agent_id,
                session_id=busy[0].message.session_id,
            )
        else:
            made = self.server.send(request).session
            session = ModelSession(
                session_pb2.Session(
                    session_id=made.session_id,
                    agent_id=agent_id,
                    hostname=self.agents[agent_id].hostname,
                    playbook=request.playbook,
                    description=description,
                    start_time=made.start_time,
                    last_activity_time=made.start_time,
                )
            )
            session.enters(RUNNING, made.start_time)
            assert made == session.message
            self.sessions.append(session)
            self.written(request, session)

    @precondition(lambda self: self.sessions)
    @rule(
        index=INDEX,
        action=st.sampled_from(["Submit", "Fail", "Interrupt"]),
        really=st.booleans(),
        request_id=REQUEST_ID,
    )
    def end(self, index: int, action: str, really: bool, request_id: str) -> None:
        session = self.session(index)
        if session.running and not really:
            return  # or there would be few with anything in them
        message = session.message
        rpc = f"{action}Session"
        status, text = {
            "Submit": (session_pb2.SESSION_STATUS_PENDING_REVIEW, "summary"),
            "Fail": (session_pb2.SESSION_STATUS_FAILED, "reason"),
            "Interrupt": (session_pb2.SESSION_STATUS_INTERRUPTED, "reason"),
        }[action]
        request = getattr(session_service_pb2, f"{rpc}Request")(
            session_id=message.session_id,
            request_id=self.request_id(request_id, rpc, message.session_id),
            **{text: f"{action} it"},
        )
        if not session.running:
            self.server.refuses(
                *(request, grpc.StatusCode.FAILED_PRECONDITION, "ILLEGAL_TRANSITION"),
                session_id=message.session_id,
                status=session.status,
                action=rpc,
            )
            return
        made = self.server.send(request).session
        session.happens(made.last_activity_time)
        if action == "Submit":
            message.summary = request.summary
            message.submit_time.CopyFrom(message.last_activity_time)
            session.enters(status, message.last_activity_time)
        else:
            message.status_reason = request.reason
            message.end_time.CopyFrom(message.last_activity_time)
            session.enters(status, message.last_activity_time, request.reason)
        assert made == message
        self.written(request, session)

    @precondition(lambda self: self.sessions)
    @rule(index=INDEX)
    def get(self, index: int) -> None:
        session = self.session(index)
        assert self.run(get_session, session) == session.message

    @rule(
        agent=st.integers(0, 3) | st.none(),
        hostname=st.sampled_from(["", "web", "dé"]),
        status=st.sampled_from([0, 0, 1, 2, 4, 5]),
        limit=st.integers(1, 4),
        offset=st.integers(0, 4),
    )
    def list_sessions(
        self, agent: int | None, hostname: str, status: Any, limit: int, offset: int
    ) -> None:
        agent_id = "" if agent is None else f"ag_{self.example}_{agent}"
        name = hostname and f"{hostname}-{self.example}"
        messages = [session.message for session in self.sessions]
        wanted = [
            message
            for message in sorted(
                messages,
                key=lambda one: (one.start_time.ToMicroseconds(), one.session_id),
                reverse=True,
            )
            if (not agent_id or message.agent_id == agent_id)
            and (not name or message.hostname in {name, name.translate(SWAP_CASE)})
            and (not status or message.status == status)
        ]
        request = session_service_pb2.ListSessionsRequest(
            playbook=f"playbook {self.example}",
            agent_id=agent_id,
            hostname=name,
            status=status,
            limit=limit,
            offset=offset,
            include_total=True,
        )
        response = self.server.send(request)
        assert list(response.sessions) == wanted[offset : offset + limit]
        assert response.total_size == len(wanted)
        assert bool(response.next_page_token) == (len(wanted) > offset + limit)
        request.offset = 0
        found: list[session_pb2.Session] = []
        while True:
            response = self.server.send(request)
            found += response.sessions
            assert len(response.sessions) == limit or not response.next_page_token
            if not response.next_page_token:
                break
            request.page_token = response.next_page_token
        assert found == wanted

    # Executions.

    @precondition(lambda self: self.sessions)
    @rule(
        index=INDEX,
        exit_code=st.sampled_from([0, 0, 1, -1073741819, None]),
        outputs=st.sampled_from([*product(OUTPUTS, OUTPUTS)]),
        times=st.integers(1, 3),
        request_id=REQUEST_ID,
    )
    def record(
        self,
        index: int,
        exit_code: int | None,
        outputs: tuple[str | bytes | None, str | bytes | None],
        times: int,
        request_id: str,
    ) -> None:
        for _ in range(times):
            self.record_one(index, exit_code, *outputs, request_id)

    def record_one(
        self,
        index: int,
        exit_code: int | None,
        output: str | bytes | None,
        error_output: str | bytes | None,
        request_id: str,
    ) -> None:
        session = self.session(index)
        message = session.message
        request = recording_service_pb2.RecordExecutionRequest(
            session_id=message.session_id,
            command=f"command {next(self.numbers)}",
            capability="shell",
            output=content(output),
            error_output=content(error_output),
            exit_code=exit_code,
            start_time=at(-2),
            end_time=at(-1) if exit_code is not None else None,
            step="2.1",
            request_id=self.request_id(request_id, "RecordExecution", message.session_id),
        )
        if not session.running:
            self.refuses_a_record(request, session)
            return
        made = self.server.send(request).execution
        session.happens(made.record_time)
        message.execution_count += 1
        message.failed_execution_count += exit_code != 0
        expected = execution_pb2.Execution(
            execution_id=made.execution_id,
            session_id=message.session_id,
            sequence=message.execution_count,
            state=execution_pb2.EXECUTION_STATE_KILLED
            if exit_code is None
            else execution_pb2.EXECUTION_STATE_EXITED,
            command=request.command,
            capability="shell",
            output=made.output if output is not None else None,
            error_output=made.error_output if error_output is not None else None,
            exit_code=exit_code,
            start_time=request.start_time,
            end_time=request.end_time if exit_code is not None else None,
            record_time=made.record_time,
            actor=LOCAL,
            step="2.1",
            finish_record_time=made.record_time,
        )
        assert made == expected
        for sent, kept in ((output, made.output), (error_output, made.error_output)):
            if sent is not None:
                assert shown(kept) == captured(sent)
                assert (kept.size_bytes, kept.truncated) == (len(captured(sent) or b""), False)
        session.executions.append(made)
        self.written(request, session, made.sequence)

    def refuses_a_record(self, request: Any, session: ModelSession) -> None:
        self.server.refuses(
            *(request, grpc.StatusCode.FAILED_PRECONDITION, "SESSION_NOT_RUNNING"),
            session_id=session.message.session_id,
            status=session.status,
        )

    def run(self, call: Any, session: ModelSession, **fields: Any) -> Any:
        """One of the harness' calls that name a session."""
        return self.server.run(call(self.server.client, session.message.session_id, **fields))

    @precondition(lambda self: self.sessions)
    @rule(index=INDEX, after=st.integers(0, 5), limit=st.integers(0, 5), failed_only=st.booleans())
    def list_executions(self, index: int, after: int, limit: int, failed_only: bool) -> None:
        session = self.session(index)
        wanted = [
            one
            for one in session.executions[after:]
            if not failed_only or not one.HasField("exit_code") or one.exit_code != 0
        ]
        found = self.run(
            list_executions, session, after_sequence=after, limit=limit, failed_only=failed_only
        )
        assert found == (wanted[:limit] if limit else wanted)

    @precondition(lambda self: self.sessions)
    @rule(index=INDEX, sequence=st.integers(1, 6))
    def get_execution(self, index: int, sequence: int) -> None:
        session = self.session(index)
        request = session_service_pb2.GetExecutionRequest(
            session_id=session.message.session_id, sequence=sequence
        )
        if sequence <= len(session.executions):
            assert self.server.send(request).execution == session.executions[sequence - 1]
        else:
            self.server.refuses(
                *(request, grpc.StatusCode.NOT_FOUND, "EXECUTION_NOT_FOUND"),
                session_id=request.session_id,
                sequence=str(sequence),
            )

    # Insights.

    @precondition(lambda self: self.sessions)
    @rule(
        index=INDEX,
        key=st.sampled_from(["a", "b"]),
        value=st.sampled_from(["x", "y"]),
        severity=st.sampled_from([0, 1, 5]),
        sequences=st.lists(st.sampled_from([1, 1, 1, 2, 3]), max_size=2),
        request_id=REQUEST_ID,
    )
    def save(
        self,
        index: int,
        key: str,
        value: str,
        severity: Any,
        sequences: list[int],
        request_id: str,
    ) -> None:
        session = self.session(index)
        message = session.message
        request = recording_service_pb2.SaveInsightRequest(
            session_id=message.session_id,
            category="c",
            key=key,
            value=value,
            severity=severity,
            execution_sequences=sequences,
            request_id=self.request_id(request_id, "SaveInsight", message.session_id),
        )
        missing = [one for one in sequences if one > len(session.executions)]
        if not session.running:
            self.refuses_a_record(request, session)
            return
        if missing:
            self.server.refuses(
                *(request, grpc.StatusCode.NOT_FOUND, "EXECUTION_NOT_FOUND"),
                session_id=message.session_id,
                sequence=str(missing[0]),
            )
            return
        made = self.server.send(request).insight
        revisions = session.insights.setdefault(("c", key), [])
        message.insight_count = len(session.insights)
        before = revisions[-1] if revisions else None
        expected = insight_pb2.Insight(
            session_id=message.session_id,
            category="c",
            key=key,
            value=value,
            severity=severity or insight_pb2.SEVERITY_INFO,
            execution_sequences=sequences,
            revision=len(revisions) + 1,
            create_time=before.create_time if before else made.create_time,
            update_time=made.update_time,
            actor=LOCAL,
        )
        if before is not None:
            expected.revision = before.revision
            same = insight_pb2.Insight()
            same.CopyFrom(expected)
            same.update_time.CopyFrom(before.update_time)
            expected.revision += same != before
        assert made == expected
        if before is None or before.revision != made.revision:
            revisions.append(made)
            session.happens(made.update_time)
        else:
            assert made == before
            session.happens(self.run(get_session, session).last_activity_time)
        self.written(request, session)

    @precondition(lambda self: self.sessions)
    @rule(index=INDEX, all_revisions=st.booleans())
    def list_insights(self, index: int, all_revisions: bool) -> None:
        session = self.session(index)
        wanted = [
            one
            for revisions in session.insights.values()
            for one in (revisions if all_revisions else revisions[-1:])
        ]
        assert self.run(list_insights, session, all_revisions=all_revisions) == wanted

    # Repeats.

    def write(self, index: int, in_a_session: bool) -> Write:
        """One of the last writes, in a session if there is one."""
        inside = [write for write in self.writes if hasattr(write.request, "session_id")]
        writes = inside if in_a_session and inside else self.writes
        return writes[-index % len(writes)]

    @precondition(lambda self: self.writes)
    @rule(index=st.integers(1, 20), in_a_session=st.booleans())
    def repeat(self, index: int, in_a_session: bool) -> None:
        write = self.write(index, in_a_session)
        request, session = write.request, write.session
        response = self.server.send(request)
        if session is None:
            assert response.agent == self.agents[request.agent_id]
        elif isinstance(request, recording_service_pb2.RecordExecutionRequest):
            assert response.execution == session.executions[write.sequence - 1]
        elif isinstance(request, recording_service_pb2.SaveInsightRequest):
            assert response.insight == session.insights[request.category, request.key][-1]
        else:
            assert response.session == session.message

    @precondition(lambda self: self.writes)
    @rule(index=st.integers(1, 20), in_a_session=st.booleans())
    def repeat_with_other_content(self, index: int, in_a_session: bool) -> None:
        original = self.write(index, in_a_session).request
        request = type(original)()
        request.CopyFrom(original)
        texts = ("os", "description", "summary", "reason", "step", "evidence")
        [text] = [text for text in texts if text in request.DESCRIPTOR.fields_by_name]
        setattr(request, text, getattr(request, text) + "!")
        self.server.refuses(
            *(request, grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
            request_id=request.request_id,
        )

    def teardown(self) -> None:
        for index in range(len(self.sessions)):
            self.get(index)
            self.list_executions(index, 0, 0, False)
            self.list_insights(index, True)


def test_random_operations_do_what_the_model_does(database_url: str) -> None:
    with server(database_url) as served:
        machine = type("Machine", (Operations,), {"server": served, "numbers": count(1)})
        run_state_machine_as_test(
            machine, settings=settings(BOUNDED, max_examples=70, stateful_step_count=40)
        )


# Page tokens.

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=10)
FILTERS = st.lists(SCALARS, max_size=6)
POSITIONS = st.text(max_size=20) | st.tuples(st.integers(0, 2**63), st.text(max_size=20)).map(list)
LETTERS = st.sampled_from("AQgwZaz09-_=+/. \n") | st.characters(exclude_categories=["Cs"])


@st.composite
def spoilt(draw: st.DrawFn, token: str) -> str:
    """The token with something changed, and never empty."""
    place = draw(st.integers(0, len(token) - 1))
    letter = draw(LETTERS)
    changed = draw(
        st.sampled_from(
            [
                token[:place] + letter + token[place + 1 :],
                token[:place] + letter + token[place:],
                token[:place] + token[place + 1 :],
                token[: place + 1],
                token[place:],
                token[:place] + token[place:].swapcase(),
                token + letter,
                token + "=",
                token + token,
            ]
        )
    )
    assume(changed not in ("", token))
    return changed


@settings(BOUNDED, max_examples=200)
@given(FILTERS, POSITIONS)
def test_a_token_holds_its_position(filters: object, position: object) -> None:
    token = page_tokens.make(filters, position)
    assert page_tokens.read(filters, token) == position
    assert token.replace("-", "").replace("_", "").isalnum()
    assert token.isascii()


@settings(BOUNDED, max_examples=200)
@given(FILTERS, FILTERS, POSITIONS)
def test_a_token_belongs_to_its_filters(one: object, other: object, position: object) -> None:
    assume(json.dumps(one) != json.dumps(other))
    with pytest.raises(PageTokenInvalid):
        page_tokens.read(other, page_tokens.make(one, position))


@settings(BOUNDED, max_examples=500)
@given(FILTERS, POSITIONS, st.data())
def test_a_spoilt_token_is_none(filters: object, position: object, data: st.DataObject) -> None:
    token = data.draw(spoilt(page_tokens.make(filters, position)))
    with pytest.raises(PageTokenInvalid):
        page_tokens.read(filters, token)


@settings(BOUNDED, max_examples=200)
@given(FILTERS, st.text(min_size=1, max_size=60) | st.binary(min_size=1, max_size=60))
def test_what_is_made_up_is_no_token(filters: object, made_up: str | bytes) -> None:
    token = made_up if isinstance(made_up, str) else made_up.hex()
    with pytest.raises(PageTokenInvalid):
        page_tokens.read(filters, token)


def test_the_server_takes_its_own_tokens_only(database_url: str) -> None:
    with server(database_url) as served:
        for _ in range(3):
            served.run(submit(served.client, served.run(running_session(served.client))))

        filters = st.fixed_dictionaries(
            {},
            optional={
                "playbook": st.just("linux-baseline"),
                "hostname": st.sampled_from(["web-1", "WEB-1"]),
                "agent_id": st.just("ag_1"),
                "status": st.just(session_pb2.SESSION_STATUS_PENDING_REVIEW),
                "started_from": st.sampled_from([at(0), at(-1)]),
                "started_before": st.sampled_from([at(10**9), at(10**9 - 1)]),
            },
        )

        @settings(BOUNDED, max_examples=100)
        @given(filters, filters, st.integers(1, 2), st.data())
        def try_tokens(
            one: dict[str, Any], other: dict[str, Any], limit: int, data: st.DataObject
        ) -> None:
            request = session_service_pb2.ListSessionsRequest(**one, limit=limit)
            first = served.send(request)
            assert len(first.sessions) == limit
            request.page_token = first.next_page_token
            request.limit = 0
            assert len(served.send(request).sessions) == 3 - limit

            request.page_token = data.draw(spoilt(first.next_page_token))
            served.refuses(request, grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
            if other != one:
                request = session_service_pb2.ListSessionsRequest(
                    **other, page_token=first.next_page_token
                )
                served.refuses(request, grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")

        try_tokens()
