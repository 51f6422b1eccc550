"""Only a human, a reviewer, and one who had no part in the session completes it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from callers import (
    HUMAN,
    SERVICE,
    calling,
    collect_to_status,
    complete_session,
    make_token,
    make_tokens,
)
from harness import (
    NO_SESSION,
    Client,
    FrozenClock,
    at,
    collect,
    database_connection,
    get_session,
    record,
    record_request,
    refused,
    register_agent,
    running_session,
    save_insight,
    serving,
    start_session,
    submit,
)
from infrascout.sessions.v1 import actor_pb2, session_pb2
from infrascout.sessions.v1 import recording_service_pb2 as pb
from infrascout.sessions.v1 import session_service_pb2 as session_service
from infrascout.sessions.v1.execution_pb2 import OUTPUT_STREAM_STDOUT
from infrascout_sessions.models import HUMANS_ONLY, ActorKind, Independence, Role

DENIED: Final = grpc.StatusCode.PERMISSION_DENIED
NOT_NOW: Final = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def ada(client: Client, database_url: str) -> AsyncIterator[Client]:
    """A human reviewer who had no part in anything."""
    token = await make_token(database_url, "ada", HUMAN, Role.REVIEWER)
    async with calling(client.address, token) as caller:
        yield caller


async def _pending(client: Client) -> str:
    session_id = await running_session(client)
    await submit(client, session_id)
    return session_id


async def test_a_human_completes_what_a_service_ran(
    client: Client, ada: Client, clock: FrozenClock
) -> None:
    session_id = await running_session(client)
    await record(client, session_id)
    clock.advance(5)
    await submit(client, session_id)
    clock.advance(5)
    session = await complete_session(ada, session_id, comment="Checked.")
    reviewer = actor_pb2.Actor(subject="ada", kind=actor_pb2.ACTOR_KIND_HUMAN)
    assert session.status == session_pb2.SESSION_STATUS_COMPLETED
    assert session.end_time == session.last_activity_time == at(10)
    assert session.review == session_pb2.Review(
        reviewer=reviewer,
        comment="Checked.",
        time=at(10),
        independence=session_pb2.REVIEW_INDEPENDENCE_REQUIRED,
    )
    assert session.transitions[-1] == session_pb2.Transition(
        status=session_pb2.SESSION_STATUS_COMPLETED, time=at(10), actor=reviewer
    )
    assert session == await get_session(client, session_id)


async def test_a_service_is_told_that_a_human_is_needed(client: Client) -> None:
    session_id = await _pending(client)
    how = await refused(
        complete_session(client, session_id), DENIED, "REVIEWER_NOT_HUMAN", subject="local"
    )
    assert "token create NAME --human --role reviewer" in how.message


@pytest.mark.parametrize("involvement", ["started", "submitted", "recorded"])
async def test_who_had_a_part_does_not_review(
    client: Client, database_url: str, involvement: str
) -> None:
    token = await make_token(database_url, "bob", HUMAN, *Role)
    async with calling(client.address, token) as bob:
        await register_agent(client)
        session_id = (await start_session(bob if involvement == "started" else client)).session_id
        await record(bob if involvement == "recorded" else client, session_id)
        await submit(bob if involvement == "submitted" else client, session_id)
        how = await refused(
            complete_session(bob, session_id),
            DENIED,
            "REVIEWER_NOT_INDEPENDENT",
            session_id=session_id,
            subject="bob",
            involvement=involvement,
        )
    assert "another human" in how.message
    status = (await get_session(client, session_id)).status
    assert status == session_pb2.SESSION_STATUS_PENDING_REVIEW


async def test_a_session_that_is_not_pending(
    client: Client, ada: Client, database_url: str
) -> None:
    session_id = await running_session(client)
    for status in ("RUNNING", "COMPLETED"):
        await refused(
            complete_session(ada, session_id),
            NOT_NOW,
            "ILLEGAL_TRANSITION",
            session_id=session_id,
            status=f"SESSION_STATUS_{status}",
            action="CompleteSession",
        )
        if status == "RUNNING":
            await submit(client, session_id)
            await complete_session(ada, session_id)
    await refused(
        complete_session(ada, NO_SESSION),
        grpc.StatusCode.NOT_FOUND,
        "SESSION_NOT_FOUND",
        session_id=NO_SESSION,
    )
    how = await refused(
        complete_session(ada, "", comment="x" * 4097, request_id="y" * 65),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    assert how.fields == ["session_id", "comment", "request_id"]


async def test_a_repeat_has_one_effect(client: Client, ada: Client) -> None:
    session_id = await _pending(client)
    first = await complete_session(ada, session_id, comment="ok", request_id="r1")
    assert await complete_session(ada, session_id, comment="ok", request_id="r1") == first
    await refused(
        complete_session(ada, session_id, comment="other", request_id="r1"),
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        request_id="r1",
    )


async def test_one_of_many_reviewers_wins(client: Client, database_url: str) -> None:
    session_id = await _pending(client)
    names = [f"reviewer-{number}" for number in range(8)]
    tokens = await make_tokens(database_url, [(name, HUMAN, [Role.REVIEWER]) for name in names])
    async with AsyncExitStack() as stack:
        callers = [
            await stack.enter_async_context(calling(client.address, tokens[name])) for name in names
        ]
        outcomes = await asyncio.gather(
            *(complete_session(caller, session_id) for caller in callers), return_exceptions=True
        )
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(won) == 1
    assert won[0] == await get_session(client, session_id)


async def test_independence_can_be_switched_off_and_the_review_says_so(database_url: str) -> None:
    token = await make_token(database_url, "bob", HUMAN, *Role)
    async with (
        serving(database_url, review_independence=Independence.NONE) as client,
        calling(client.address, token) as bob,
    ):
        session_id = await _pending(bob)
        session = await complete_session(bob, session_id)
        assert session.review.independence == session_pb2.REVIEW_INDEPENDENCE_NONE
        # What stays is that it takes a human.
        other = await _pending(client)
        await refused(
            complete_session(client, other), DENIED, "REVIEWER_NOT_HUMAN", subject="local"
        )


async def test_the_database_itself_refuses_a_program(client: Client, database_url: str) -> None:
    session_id = await _pending(client)
    with pytest.raises(sa.exc.IntegrityError, match="completed_by_human"):
        async with database_connection(database_url) as connection:
            await connection.execute(
                sa.text(
                    "UPDATE sessions SET status = 'completed', end_time = 1, end_actor = :actor"
                    " WHERE session_id = :session_id"
                ),
                {"session_id": session_id, "actor": "service:local"},
            )


# A random search: whoever does what in whatever order, no session ends up completed by a program
# or by somebody who had a part in it.


_Step = tuple[str, str]


@dataclass
class _World:
    """A server with callers of every sort, and what is known of one session."""

    clients: dict[str, Client]
    kinds: dict[str, ActorKind]
    agents: int = 0
    session_id: str = NO_SESSION
    involved: set[str] = field(default_factory=set)
    sequence: int = 1
    appended: bool = False
    finished: bool = False


async def _start(world: _World, who: str) -> None:
    world.agents += 1
    await register_agent(world.clients["registrar"], f"ag_{world.agents}")
    session = await start_session(world.clients[who], f"ag_{world.agents}")
    world.session_id, world.involved = session.session_id, {who}


async def _record(world: _World, who: str) -> None:
    await record(world.clients[who], world.session_id)
    world.involved.add(who)


async def _record_many(world: _World, who: str) -> None:
    async def requests() -> AsyncIterator[pb.RecordExecutionsRequest]:
        yield pb.RecordExecutionsRequest(executions=[record_request(world.session_id)] * 2)

    recording = world.clients[who].recording
    [response] = await collect_to_status(lambda: recording.RecordExecutions(requests()))
    if response.results[0].HasField("recorded"):
        world.involved.add(who)


async def _begin(world: _World, who: str) -> None:
    request = pb.BeginExecutionRequest(
        session_id=world.session_id, command="id", capability="shell", start_time=at(0)
    )
    answer = await world.clients[who].recording.BeginExecution(request)
    world.sequence = answer.execution.sequence
    world.appended = world.finished = False
    world.involved.add(who)


async def _append(world: _World, who: str) -> None:
    request = pb.AppendOutputRequest(
        session_id=world.session_id, sequence=world.sequence, stream=OUTPUT_STREAM_STDOUT, data=b"x"
    )
    await world.clients[who].recording.AppendOutput(request)
    # Whoever repeats what is stored has added nothing.
    if not world.appended:
        world.involved.add(who)
    world.appended = True


async def _finish(world: _World, who: str) -> None:
    request = pb.FinishExecutionRequest(
        session_id=world.session_id, sequence=world.sequence, exit_code=0, end_time=at(1)
    )
    await world.clients[who].recording.FinishExecution(request)
    if not world.finished:
        world.involved.add(who)
    world.finished = True


async def _save(world: _World, who: str) -> None:
    await save_insight(world.clients[who], world.session_id, value=f"by {who}")
    world.involved.add(who)


async def _submit(world: _World, who: str) -> None:
    await submit(world.clients[who], world.session_id)
    world.involved.add(who)


async def _fail(world: _World, who: str) -> None:
    request = session_service.FailSessionRequest(session_id=world.session_id, reason="broke")
    await world.clients[who].sessions.FailSession(request)


async def _complete(world: _World, who: str) -> None:
    await complete_session(world.clients[who], world.session_id, request_id=f"by {who}")


OPERATIONS: Final = {
    "start": _start,
    "record": _record,
    "record many": _record_many,
    "begin": _begin,
    "append": _append,
    "finish": _finish,
    "save": _save,
    "submit": _submit,
    "fail": _fail,
    "complete": _complete,
}
EXPECTED: Final = {
    DENIED,
    NOT_NOW,
    *map(grpc.StatusCode.__getitem__, ("OK", "NOT_FOUND", "ABORTED")),
}
EVERYTHING: Final = frozenset(Role)
CALLERS: Final = {
    "ada": (HUMAN, EVERYTHING),
    "bob": (HUMAN, EVERYTHING),
    "reviewer": (HUMAN, frozenset({Role.REVIEWER})),
    "operator": (HUMAN, EVERYTHING - HUMANS_ONLY),
    "assessor": (SERVICE, EVERYTHING - HUMANS_ONLY),
    "registrar": (SERVICE, EVERYTHING - HUMANS_ONLY),
}
STARTERS: Final = [name for name, (_, roles) in CALLERS.items() if Role.OPERATOR in roles]

_RECORDS = ("record", "record many", "begin", "append", "finish", "save")
_WHO = st.sampled_from(list(CALLERS))


def _steps(names: tuple[str, ...], most: int, least: int = 0) -> st.SearchStrategy[list[_Step]]:
    return st.lists(st.tuples(st.sampled_from(names), _WHO), min_size=least, max_size=most)


# Anything in any order; and what comes near to a review, for chance seldom gets there.
_ANYTHING = _steps(tuple(OPERATIONS), most=12, least=3)
_NEAR = st.tuples(
    _steps(_RECORDS, most=5),
    _steps(("submit",), most=2, least=1),
    _steps(tuple(OPERATIONS), most=1),
    _steps(("complete",), most=4, least=1),
).map(lambda parts: [step for part in parts for step in part])


async def _run(world: _World, starter: str, steps: list[_Step]) -> str:
    await _start(world, starter)
    for name, who in steps:
        code = grpc.StatusCode.OK
        try:
            await OPERATIONS[name](world, who)
        except grpc.aio.AioRpcError as error:
            code = error.code()
        note(f"{name} by {who}: {code.name}")
        assert code in EXPECTED
        session = await get_session(world.clients["ada"], world.session_id)
        if session.status == session_pb2.SESSION_STATUS_COMPLETED:
            reviewer = session.review.reviewer
            assert reviewer.kind == actor_pb2.ACTOR_KIND_HUMAN
            assert CALLERS[reviewer.subject][0] is HUMAN
            assert Role.REVIEWER in CALLERS[reviewer.subject][1]
            assert reviewer.subject not in world.involved
            assert reviewer.subject not in await _on_record(world)
            return reviewer.subject
    return ""


async def _on_record(world: _World) -> set[str]:
    """Who is on record for anything but the review, as any reader can see."""
    session = await get_session(world.clients["ada"], world.session_id)
    of_lifecycle = {step.actor.subject for step in list(session.transitions)[:-1]}
    request = session_service.ListExecutionsRequest(session_id=world.session_id)
    executions = await collect(world.clients["ada"].sessions.ListExecutions(request))
    return of_lifecycle | {
        execution.actor.subject for response in executions for execution in response.executions
    }


@pytest.mark.parametrize("way", _RECORDS)
async def test_every_way_of_recording_is_a_part_in_it(
    client: Client, database_url: str, way: str
) -> None:
    token = await make_token(database_url, "bob", HUMAN, *Role)
    async with calling(client.address, token) as bob:
        world = _World({"bob": bob, "local": client, "registrar": client}, {})
        await _start(world, "local")
        if way in ("append", "finish"):
            await _begin(world, "local")
        await OPERATIONS[way](world, "bob")
        await _submit(world, "local")
        await refused(
            complete_session(bob, world.session_id),
            DENIED,
            "REVIEWER_NOT_INDEPENDENT",
            session_id=world.session_id,
            subject="bob",
            involvement="recorded",
        )


def test_no_order_of_calls_lets_a_session_be_completed_by_who_ran_it(database_url: str) -> None:
    reviewers: set[str] = set()

    async def open_world(stack: AsyncExitStack) -> dict[str, Client]:
        tokens = await make_tokens(
            database_url, [(name, kind, roles) for name, (kind, roles) in CALLERS.items()]
        )
        server = await stack.enter_async_context(serving(database_url, require_identity=True))
        return {
            name: await stack.enter_async_context(calling(server.address, token))
            for name, token in tokens.items()
        }

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        clients = runner.run(open_world(stack))
        kinds = {name: kind for name, (kind, _) in CALLERS.items()}
        agents = [0]

        @settings(
            max_examples=250,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.sampled_from(STARTERS), st.one_of(_NEAR, _NEAR, _ANYTHING))
        def search(starter: str, steps: list[_Step]) -> None:
            agents[0] += 100
            world = _World(clients, kinds, agents=agents[0])
            work: Coroutine[Any, Any, str] = _run(world, starter, steps)
            reviewers.add(runner.run(work))

        try:
            search()
        finally:
            runner.run(stack.aclose())
    # The search has seen sessions completed, and by whom it may be.
    assert {"ada", "bob", "reviewer"} <= reviewers
    assert reviewers <= {"ada", "bob", "reviewer", ""}


async def test_racing_for_a_part_in_it(database_url: str) -> None:
    """Who records while it is submitted and reviewed is either too late or not its reviewer."""
    people = [f"human-{number}" for number in range(4)]
    tokens = await make_tokens(database_url, [(name, HUMAN, Role) for name in people])
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(database_url))
        clients = [
            await stack.enter_async_context(calling(server.address, tokens[name]))
            for name in people
        ]
        completed = 0
        for round_number in range(25):
            session_id = await running_session(server, f"ag_{round_number}")
            calls: list[Awaitable[object]] = [submit(server, session_id)]
            for client in clients:
                calls.append(record(client, session_id))
                calls.extend(complete_session(client, session_id) for _ in range(2))
            await asyncio.gather(*calls, return_exceptions=True)
            session = await get_session(server, session_id)
            if session.status != session_pb2.SESSION_STATUS_COMPLETED:
                continue
            completed += 1
            request = session_service.ListExecutionsRequest(session_id=session_id)
            recorded = {
                execution.actor.subject
                for response in await collect(server.sessions.ListExecutions(request))
                for execution in response.executions
            }
            assert session.review.reviewer.subject not in recorded
        assert completed
