from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from harness import (
    LOCAL,
    Client,
    FrozenClock,
    at,
    complete,
    database_connection,
    get_session,
    record,
    refused,
    running_session,
    save_insight,
    start_session,
    submit,
)
from infrascout.sessions.v1 import actor_pb2, session_pb2
from infrascout.sessions.v1 import session_service_pb2 as pb
from infrascout_sessions.lifecycle import FINAL, INITIAL, TRANSITIONS, Action, Status

Session = session_pb2.Session


async def fail(client: Client, session_id: str) -> Session:
    request = pb.FailSessionRequest(session_id=session_id, reason="the agent broke")
    return (await client.sessions.FailSession(request)).session


async def interrupt(client: Client, session_id: str) -> Session:
    request = pb.InterruptSessionRequest(session_id=session_id, reason="not wanted any more")
    return (await client.sessions.InterruptSession(request)).session


# CompleteSession comes with the review; until then the database is told.
RPCS: dict[Action, Callable[[Client, str], Awaitable[Session]]] = {
    Action.SUBMIT: submit,
    Action.FAIL: fail,
    Action.INTERRUPT: interrupt,
}

WAYS: dict[Status, list[Action]] = {
    Status.RUNNING: [],
    Status.PENDING_REVIEW: [Action.SUBMIT],
    Status.COMPLETED: [Action.SUBMIT, Action.COMPLETE],
    Status.FAILED: [Action.FAIL],
    Status.INTERRUPTED: [Action.INTERRUPT],
}

REASONS = {Status.FAILED: "the agent broke", Status.INTERRUPTED: "not wanted any more"}

LEGAL = [
    (status, action)
    for status, action in product(Status, Action)
    if status in TRANSITIONS[action].sources
]
ILLEGAL = [step for step in product(Status, Action) if step not in LEGAL]


def number(status: Status) -> Any:
    return session_pb2.SessionStatus.Value(f"SESSION_STATUS_{status.name}")


async def brought_to(client: Client, database_url: str, clock: FrozenClock, status: Status) -> str:
    """A session in this status, with a second between any two of its transitions."""
    session_id = await running_session(client)
    for action in WAYS[status]:
        clock.advance(1)
        if action is Action.COMPLETE:
            await complete(database_url, session_id, comment="seen", seconds=2)
        else:
            await RPCS[action](client, session_id)
    return session_id


def expected(*statuses: Status) -> list[session_pb2.Transition]:
    """The transitions of a session that went through these, a second apart."""
    return [
        session_pb2.Transition(
            status=number(status),
            time=at(seconds),
            actor=(
                actor_pb2.Actor(subject="ada", kind=actor_pb2.ACTOR_KIND_HUMAN)
                if status is Status.COMPLETED
                else LOCAL
            ),
            reason=REASONS.get(status, ""),
        )
        for seconds, status in enumerate(statuses)
    ]


def statuses_on_the_way(status: Status) -> list[Status]:
    return [INITIAL, *(TRANSITIONS[action].target for action in WAYS[status])]


def names(step: tuple[Status, Action]) -> str:
    return f"{step[0].name}-{step[1]}"


def test_every_status_can_be_reached_and_the_final_ones_not_left() -> None:
    for status in Status:
        for before, action in zip(statuses_on_the_way(status), WAYS[status], strict=False):
            assert before in TRANSITIONS[action].sources
        assert statuses_on_the_way(status)[-1] is status
    assert {Status.COMPLETED, Status.FAILED, Status.INTERRUPTED} == FINAL


def test_every_action_but_the_completion_has_an_rpc() -> None:
    methods = pb.DESCRIPTOR.services_by_name["SessionService"].methods_by_name
    assert {action for action in Action if action in methods} == set(RPCS)
    assert set(Action) - set(RPCS) == {Action.COMPLETE}


@pytest.mark.parametrize("status", Status, ids=lambda status: status.name)
async def test_a_session_shows_how_it_came_to_its_status(
    client: Client, database_url: str, clock: FrozenClock, status: Status
) -> None:
    session = await get_session(client, await brought_to(client, database_url, clock, status))
    assert session.status == number(status)
    assert list(session.transitions) == expected(*statuses_on_the_way(status))
    assert session.status_reason == REASONS.get(status, "")
    last = len(session.transitions) - 1
    assert session.start_time == at(0)
    assert session.last_activity_time == at(last)
    submitted = status in {Status.PENDING_REVIEW, Status.COMPLETED}
    assert (session.submit_time if session.HasField("submit_time") else None) == (
        at(1) if submitted else None
    )
    assert (session.end_time if session.HasField("end_time") else None) == (
        at(last) if status in FINAL else None
    )
    assert session.summary == ("done" if submitted else "")
    if status is Status.COMPLETED:
        ada = actor_pb2.Actor(subject="ada", kind=actor_pb2.ACTOR_KIND_HUMAN)
        assert session.review == session_pb2.Review(reviewer=ada, comment="seen", time=at(2))
    else:
        assert not session.HasField("review")


@pytest.mark.parametrize("step", [step for step in LEGAL if step[1] in RPCS], ids=names)
async def test_a_legal_step_leads_to_its_target(
    client: Client, database_url: str, clock: FrozenClock, step: tuple[Status, Action]
) -> None:
    status, action = step
    session_id = await brought_to(client, database_url, clock, status)
    # Whoever has read it before must not see it so afterwards.
    assert (await get_session(client, session_id)).status == number(status)
    clock.advance(1)
    session = await RPCS[action](client, session_id)
    target = TRANSITIONS[action].target
    assert session.status == number(target)
    assert list(session.transitions) == expected(*statuses_on_the_way(status), target)
    assert session == await get_session(client, session_id)


@pytest.mark.parametrize("step", [step for step in ILLEGAL if step[1] in RPCS], ids=names)
async def test_an_illegal_step_is_refused_and_changes_nothing(
    client: Client, database_url: str, clock: FrozenClock, step: tuple[Status, Action]
) -> None:
    status, action = step
    session_id = await brought_to(client, database_url, clock, status)
    before = await get_session(client, session_id)
    clock.advance(1)
    answer = await refused(
        RPCS[action](client, session_id),
        grpc.StatusCode.FAILED_PRECONDITION,
        "ILLEGAL_TRANSITION",
        session_id=session_id,
        status=f"SESSION_STATUS_{status.name}",
        action=action.value,
    )
    assert session_id in answer.message
    assert await get_session(client, session_id) == before


@pytest.mark.parametrize(
    "status", [Status.RUNNING, Status.FAILED, Status.INTERRUPTED], ids=lambda status: status.name
)
async def test_the_database_completes_none_that_is_not_submitted(
    client: Client, database_url: str, clock: FrozenClock, status: Status
) -> None:
    session_id = await brought_to(client, database_url, clock, status)
    with pytest.raises(IntegrityError, match="submitted_has_time_and_actor"):
        await complete(database_url, session_id)


async def test_the_database_lets_no_service_complete(client: Client, database_url: str) -> None:
    session_id = await running_session(client)
    await submit(client, session_id)
    with pytest.raises(IntegrityError, match="completed_by_human"):
        await complete(database_url, session_id, reviewer="service:local")
    assert (await get_session(client, session_id)).status == number(Status.PENDING_REVIEW)


async def test_the_database_knows_no_other_status(client: Client, database_url: str) -> None:
    session_id = await running_session(client)
    with pytest.raises(IntegrityError, match="status_is_known"):
        async with database_connection(database_url) as connection:
            await connection.execute(
                sa.text("UPDATE sessions SET status = 'done' WHERE session_id = :id"),
                {"id": session_id},
            )


@pytest.mark.parametrize("status", list(Status)[1:], ids=lambda status: status.name)
async def test_only_a_running_session_takes_records_and_holds_its_agent(
    client: Client, database_url: str, clock: FrozenClock, status: Status
) -> None:
    session_id = await brought_to(client, database_url, clock, status)
    before = await get_session(client, session_id)
    clock.advance(1)
    for call in (record(client, session_id), save_insight(client, session_id)):
        answer = await refused(
            call,
            grpc.StatusCode.FAILED_PRECONDITION,
            "SESSION_NOT_RUNNING",
            session_id=session_id,
            status=f"SESSION_STATUS_{status.name}",
        )
        assert session_id in answer.message
    assert await get_session(client, session_id) == before
    assert (await start_session(client)).status == number(Status.RUNNING)


async def test_time_never_goes_back_within_a_session(client: Client, clock: FrozenClock) -> None:
    session_id = await running_session(client)
    clock.advance(10)
    first = await record(client, session_id)
    clock.advance(-7)
    second = await record(client, session_id)
    insight = await save_insight(client, session_id)
    session = await submit(client, session_id)
    times = [
        first.record_time,
        second.record_time,
        insight.create_time,
        insight.update_time,
        session.submit_time,
        session.last_activity_time,
        session.transitions[-1].time,
    ]
    assert times == [at(10)] * len(times)
