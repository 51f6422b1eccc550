from collections.abc import Callable, Iterable
from itertools import chain, combinations
from typing import Any

import pytest
import sqlalchemy as sa

from harness import (
    Client,
    FrozenClock,
    at,
    complete,
    database_connection,
    register_agent,
    start_session,
    submit,
)
from infrascout.sessions.v1 import session_pb2
from infrascout.sessions.v1 import session_service_pb2 as pb

Session = session_pb2.Session


async def page(client: Client, **fields: Any) -> pb.ListSessionsResponse:
    return await client.sessions.ListSessions(pb.ListSessionsRequest(**fields))


def ids(sessions: Iterable[Session]) -> list[str]:
    return [session.session_id for session in sessions]


async def insert_sessions(database_url: str, count: int, **columns: Any) -> None:
    """Add sessions of `ag_1` that have failed, beside the server; the last is the most recent."""
    row = {
        "agent_id": "ag_1",
        "hostname": "web-1",
        "hostname_lower": "web-1",
        "playbook": "bulk",
        "description": "",
        "status": "failed",
        "status_reason": "made for a test",
        "execution_count": 0,
        "failed_execution_count": 0,
        "insight_count": 0,
        "summary": "",
        "start_actor": "service:local",
        "end_actor": "service:local",
        "review_comment": "",
        **columns,
    }
    times = {name: at(0).ToMicroseconds() for name in ("last_activity_time", "end_time")}
    names = ["session_id", "start_time", *times, *row]
    insert = sa.text(f"INSERT INTO sessions ({', '.join(names)}) VALUES (:{', :'.join(names)})")
    start = at(-count).ToMicroseconds()
    async with database_connection(database_url) as connection:
        await connection.execute(
            insert,
            [
                {**row, **times, "session_id": f"sess_{n:05}", "start_time": start + n * 1_000_000}
                for n in range(count)
            ],
        )


# Filters.

FILTERS: dict[str, list[Any]] = {
    "agent_id": ["ag_1", "ag_4", "ag_none"],
    "hostname": ["web-1", "DB-1"],
    "playbook": ["linux-baseline", "none"],
    "status": [
        session_pb2.SESSION_STATUS_RUNNING,
        session_pb2.SESSION_STATUS_PENDING_REVIEW,
        session_pb2.SESSION_STATUS_COMPLETED,
    ],
    "started_from": [at(5), at(20)],
    "started_before": [at(12), at(5)],
}

MATCHES: dict[str, Callable[[Session, Any], bool]] = {
    "agent_id": lambda session, value: session.agent_id == value,
    "hostname": lambda session, value: session.hostname.lower() == value.lower(),
    "playbook": lambda session, value: session.playbook == value,
    "status": lambda session, value: session.status == value,
    "started_from": lambda session, value: (
        session.start_time.ToMicroseconds() >= value.ToMicroseconds()
    ),
    "started_before": lambda session, value: (
        session.start_time.ToMicroseconds() < value.ToMicroseconds()
    ),
}


def filters_combined() -> Iterable[dict[str, Any]]:
    """Each set of filters, each with one of its values, and every value of each at least once."""
    names = list(FILTERS)
    for chosen in chain.from_iterable(combinations(names, n) for n in range(len(names) + 1)):
        for variant in range(3):
            yield {
                name: FILTERS[name][(variant + position) % len(FILTERS[name])]
                for position, name in enumerate(chosen)
            }


async def varied_sessions(client: Client, database_url: str, clock: FrozenClock) -> list[Session]:
    """Sessions that differ in everything that can be filtered; most recent first."""
    for agent_id, hostname in [
        ("ag_1", "web-1"),
        ("ag_2", "Web-1"),
        ("ag_3", "db-1"),
        ("ag_4", "db-1"),
    ]:
        await register_agent(client, agent_id, hostname=hostname)
    for turn in range(6):
        for agent in range(1, 5):
            # Two sessions start at each instant, so that their ids decide the order.
            clock.advance(agent % 2)
            session = await start_session(
                client,
                f"ag_{agent}",
                playbook=["linux-baseline", "hardening", "Linux-baseline"][(turn + agent) % 3],
            )
            if turn < 5:
                await submit(client, session.session_id)
            if turn < 5 and (turn + agent) % 2:
                await complete(database_url, session.session_id)
    sessions = list((await page(client, limit=200)).sessions)
    assert len(sessions) == 24
    return sessions


async def test_sessions_are_listed_whole_and_most_recent_first(
    client: Client, database_url: str, clock: FrozenClock
) -> None:
    sessions = await varied_sessions(client, database_url, clock)
    for session in sessions:
        request = pb.GetSessionRequest(session_id=session.session_id)
        assert (await client.sessions.GetSession(request)).session == session
    order = [(session.start_time.ToMicroseconds(), session.session_id) for session in sessions]
    assert order == sorted(order, reverse=True)
    assert len({time for time, _ in order}) == 12


async def test_filters_combine_with_and(
    client: Client, database_url: str, clock: FrozenClock
) -> None:
    sessions = await varied_sessions(client, database_url, clock)
    counts = set()
    for filters in filters_combined():
        expected = [
            session
            for session in sessions
            if all(MATCHES[name](session, value) for name, value in filters.items())
        ]
        response = await page(client, **filters, limit=200, include_total=True)
        assert response == pb.ListSessionsResponse(sessions=expected, total_size=len(expected)), (
            filters
        )
        counts.add(len(expected))
    assert len(counts) > 5


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"started_from": at(1)}, [3, 2, 1]),
        ({"started_from": at(1.000001)}, [3, 2]),
        ({"started_before": at(2)}, [1]),
        ({"started_before": at(2.000001)}, [2, 1]),
        ({"started_from": at(2), "started_before": at(3)}, [2]),
        ({"started_from": at(2), "started_before": at(2)}, []),
        ({"started_from": at(3), "started_before": at(1)}, []),
        ({"started_from": at(-(10**10))}, [3, 2, 1]),
        ({"started_before": at(10**10)}, [3, 2, 1]),
    ],
    ids=str,
)
async def test_a_time_range_holds_its_start_and_not_its_end(
    client: Client, clock: FrozenClock, fields: dict[str, Any], found: list[int]
) -> None:
    started = {}
    for second in (1, 2, 3):
        clock.advance(1)
        await register_agent(client, f"ag_{second}")
        started[second] = (await start_session(client, f"ag_{second}")).session_id
    assert ids((await page(client, **fields)).sessions) == [started[second] for second in found]


@pytest.mark.parametrize(
    ("hostname", "found"),
    [
        ("web-1.example", True),
        ("WEB-1.EXAMPLE", True),
        ("wEb-1.eXample", True),
        ("web-1", False),
        ("web-1.example.", False),
        ("%", False),
        ("web_1.example", False),
    ],
)
async def test_a_hostname_matches_whole_in_any_ascii_case(
    client: Client, hostname: str, found: bool
) -> None:
    await register_agent(client, hostname="Web-1.Example")
    session = await start_session(client)
    expected = [session] if found else []
    assert list((await page(client, hostname=hostname)).sessions) == expected


@pytest.mark.parametrize(
    ("registered", "asked", "found"),
    [
        ("Zürich", "zürich", True),
        ("Zürich", "ZüRICH", True),
        ("Zürich", "ZÜRICH", False),
        ("ZÜRICH", "zürich", False),
        ("\u212a", "k", False),  # the Kelvin sign, whose lower case is an ASCII k
        ("straße", "STRASSE", False),
        ("\u0130", "i\u0307", False),
    ],
)
async def test_other_letters_match_in_their_own_case_only(
    client: Client, registered: str, asked: str, found: bool
) -> None:
    await register_agent(client, hostname=registered)
    session = await start_session(client)
    assert ids((await page(client, hostname=asked)).sessions) == [session.session_id] * found


async def test_the_hostname_is_the_one_at_the_start(client: Client) -> None:
    await register_agent(client, hostname="old")
    session = await start_session(client)
    await register_agent(client, hostname="new")
    assert ids((await page(client, hostname="old")).sessions) == [session.session_id]
    assert ids((await page(client, hostname="new")).sessions) == []


async def test_no_sessions_are_an_empty_page(client: Client) -> None:
    assert await page(client, include_total=True) == pb.ListSessionsResponse()


# Limits, offsets, totals.


async def test_a_page_holds_20_sessions_or_the_limit_or_200(
    client: Client, database_url: str
) -> None:
    await register_agent(client)
    await insert_sessions(database_url, 203)
    recent = [f"sess_{n:05}" for n in reversed(range(203))]
    for limit, held in ((0, 20), (1, 1), (199, 199), (200, 200), (201, 200), (2**31 - 1, 200)):
        response = await page(client, limit=limit)
        assert ids(response.sessions) == recent[:held], limit
        assert response.next_page_token
    for offset, held in ((0, 200), (1, 200), (3, 200), (4, 199), (202, 1), (203, 0), (10_000, 0)):
        response = await page(client, limit=200, offset=offset)
        assert ids(response.sessions) == recent[offset:][:200], offset
        assert len(response.sessions) == held
        assert bool(response.next_page_token) == (offset + held < 203)


async def test_a_token_leads_on_from_a_page_with_an_offset(
    client: Client, database_url: str
) -> None:
    await register_agent(client)
    await insert_sessions(database_url, 10)
    first = await page(client, offset=3, limit=2)
    second = await page(client, page_token=first.next_page_token)
    assert ids(first.sessions) + ids(second.sessions) == [
        f"sess_{n:05}" for n in (6, 5, 4, 3, 2, 1, 0)
    ]


async def test_the_total_counts_all_pages_and_only_if_asked(
    client: Client, database_url: str
) -> None:
    await register_agent(client)
    await insert_sessions(database_url, 30)
    assert (await page(client, limit=2)).total_size == 0
    first = await page(client, limit=2, include_total=True)
    assert first.total_size == 30
    second = await page(client, page_token=first.next_page_token, include_total=True)
    assert second.total_size == 30
    assert (await page(client, offset=29, include_total=True)).total_size == 30
    assert (await page(client, playbook="none", include_total=True)).total_size == 0
    assert not first.total_size_capped


async def test_the_total_is_counted_up_to_10000(client: Client, database_url: str) -> None:
    await register_agent(client)
    await insert_sessions(database_url, 10_000)
    exact = await page(client, limit=1, include_total=True, playbook="bulk")
    assert (exact.total_size, exact.total_size_capped) == (10_000, False)
    deepest = await page(client, limit=1, offset=9_999)
    assert ids(deepest.sessions) == ["sess_00000"]
    assert deepest.next_page_token == ""
    await start_session(client, playbook="bulk")
    capped = await page(client, limit=1, include_total=True, playbook="bulk")
    assert (capped.total_size, capped.total_size_capped) == (10_000, True)
    assert (await page(client, offset=10_000)).sessions == [exact_last := deepest.sessions[0]]
    assert exact_last.session_id == "sess_00000"
