import base64
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from harness import (
    Client,
    FrozenClock,
    at,
    refused,
    register_agent,
    running_session,
    start_session,
    submit,
)
from infrascout.sessions.v1 import agent_service_pb2, session_pb2
from infrascout.sessions.v1 import session_service_pb2 as pb

RUNNING = session_pb2.SESSION_STATUS_RUNNING


async def page(client: Client, **fields: Any) -> pb.ListSessionsResponse:
    return await client.sessions.ListSessions(pb.ListSessionsRequest(**fields))


def ids(response: pb.ListSessionsResponse) -> list[str]:
    return [session.session_id for session in response.sessions]


async def running_sessions(client: Client, clock: FrozenClock, count: int) -> list[str]:
    """The ids of new sessions, most recent first; every second one starts a second later."""
    started = []
    for n in range(count):
        clock.advance(n % 2)
        started.append(await running_session(client, f"ag_{n:03}"))
    return started[::-1]


@pytest.mark.parametrize("limits", [[1], [2], [3], [7], [8], [3, 1, 2]], ids=str)
async def test_pages_hold_every_session_once_and_only_the_last_has_no_token(
    client: Client, clock: FrozenClock, limits: list[int]
) -> None:
    expected = await running_sessions(client, clock, 7)
    found: list[str] = []
    page_token, pages = "", 0
    while pages == 0 or page_token:
        response = await page(client, page_token=page_token, limit=limits[pages % len(limits)])
        assert response.sessions
        found += ids(response)
        page_token, pages = response.next_page_token, pages + 1
    assert found == expected


async def test_sessions_that_start_or_change_meanwhile_neither_repeat_nor_hide_others(
    client: Client, clock: FrozenClock
) -> None:
    at_first = await running_sessions(client, clock, 12)
    found: list[str] = []
    submitted: set[str] = set()
    page_token = ""
    while True:
        response = await page(client, status=RUNNING, limit=3, page_token=page_token)
        found += ids(response)
        page_token = response.next_page_token
        if not page_token:
            break
        seen = len(found)
        # One that was shown changes, and one that is still to come; new ones start: at the same
        # time as the most recent, later, and (the clock was set back) earlier than all.
        for session_id in (at_first[seen - 1], at_first[-seen]):
            if session_id not in submitted and session_id != at_first[-1]:
                await submit(client, session_id)
                submitted.add(session_id)
        await running_session(client, f"new_{seen}_now")
        clock.advance(1)
        await running_session(client, f"new_{seen}_later")
        clock.advance(-1)
    hidden = [session_id for session_id in at_first if session_id not in found]
    assert len(found) == len(set(found))
    assert [session_id for session_id in at_first if session_id in found] == found
    assert set(hidden) <= submitted
    assert hidden


async def test_a_session_that_starts_in_the_past_meanwhile_shows_at_most_once(
    client: Client, clock: FrozenClock
) -> None:
    at_first = await running_sessions(client, clock, 4)
    first = await page(client, limit=2)
    clock.advance(-1000)
    late = await running_session(client, "ag_late")
    second = await page(client, page_token=first.next_page_token)
    assert ids(first) + ids(second) == [*at_first, late]


@pytest.mark.parametrize(
    ("character", "sessions", "held"), [("x", 40, 15), ("é", 20, 7), ("𝄞", 10, 3)]
)
async def test_a_page_ends_early_at_1_mib(
    client: Client, character: str, sessions: int, held: int
) -> None:
    expected: list[str] = []
    await register_agent(client)
    for _ in range(sessions):
        session_id = (await start_session(client)).session_id
        await submit(client, session_id, summary=character * 65_536)
        expected.insert(0, session_id)
    by_token: list[str] = []
    page_token, more = "", True
    while more:
        response = await page(client, page_token=page_token, limit=100)
        assert response.ByteSize() <= 1024 * 1024
        by_token += ids(response)
        page_token = response.next_page_token
        more = bool(page_token)
        assert len(response.sessions) == held if more else response.sessions
    assert by_token == expected
    # Who pages by offset adds what was received.
    by_offset: list[str] = []
    while len(by_offset) < sessions:
        by_offset += ids(await page(client, offset=len(by_offset), limit=100))
    assert by_offset == expected


# Tokens.

FILTERS: dict[str, Any] = {
    "agent_id": "ag_000",
    "hostname": "web-1",
    "playbook": "linux-baseline",
    "status": RUNNING,
    "started_from": at(0),
    "started_before": at(100),
}


@pytest.mark.parametrize("changed", FILTERS)
@pytest.mark.parametrize("how", ["left out", "added"])
async def test_a_token_belongs_to_its_filters(
    client: Client, clock: FrozenClock, changed: str, how: str
) -> None:
    await running_sessions(client, clock, 3)
    # An agent with two sessions, so that there is a second page of it.
    await submit(client, ids(await page(client, agent_id="ag_000"))[0])
    await start_session(client, "ag_000")
    others = set(FILTERS) - {changed, "agent_id", "status"}
    without = {name: FILTERS[name] for name in others}
    with_it = {**without, changed: FILTERS[changed]}
    first, then = (with_it, without) if how == "left out" else (without, with_it)
    page_token = (await page(client, limit=1, **first)).next_page_token
    assert page_token
    assert (await page(client, limit=2, page_token=page_token, **first)).sessions
    answer = await refused(
        page(client, limit=1, page_token=page_token, **then),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PAGE_TOKEN_INVALID",
    )
    assert answer.fields == ["page_token"]


async def test_a_token_does_not_come_with_an_offset(client: Client, clock: FrozenClock) -> None:
    await running_sessions(client, clock, 3)
    page_token = (await page(client, limit=1)).next_page_token
    answer = await refused(
        page(client, page_token=page_token, offset=1),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PAGE_TOKEN_INVALID",
    )
    assert answer.fields == ["page_token"]
    assert "offset" in answer.message


def flipped(token: str) -> str:
    return token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1]


SPOILT: dict[str, Callable[[str], str]] = {
    "cut": lambda token: token[:-1],
    "cut to its checksum": lambda token: token[:16],
    "cut to one character": lambda token: token[:1],
    "longer": lambda token: token + "A",
    "padded": lambda token: token + "=",
    "with white space": lambda token: token + " ",
    "with a line break": lambda token: token[:8] + "\n" + token[8:],
    "with a stray character": lambda token: token[:8] + "!" + token[8:],
    "with NUL": lambda token: token + "\0",
    "one character changed": flipped,
    "in the other case": str.swapcase,
    "twice": lambda token: token * 2,
    "of the other base64 alphabet": lambda token: base64.b64encode(
        base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)) + b"\xfb\xff"
    ).decode(),
    "no base64": lambda _: "not a token",
    "no ASCII": lambda _: "é",
    "a number": lambda _: "2",
    "JSON": lambda _: '[1769860800000000,"sess_1"]',
    "blank": lambda _: " ",
    "very long": lambda _: "A" * 100_000,
}


@pytest.mark.parametrize("case", SPOILT)
async def test_a_spoilt_token_is_invalid(client: Client, clock: FrozenClock, case: str) -> None:
    await running_sessions(client, clock, 2)
    good = (await page(client, limit=1)).next_page_token
    spoilt = SPOILT[case](good)
    assert spoilt != good
    answer = await refused(
        page(client, page_token=spoilt), grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"
    )
    assert answer.fields == ["page_token"]


async def test_a_token_of_another_list_is_invalid(client: Client, clock: FrozenClock) -> None:
    await running_sessions(client, clock, 2)
    agents = await client.agents.ListAgents(agent_service_pb2.ListAgentsRequest(limit=1))
    assert agents.next_page_token
    await refused(
        page(client, page_token=agents.next_page_token),
        grpc.StatusCode.INVALID_ARGUMENT,
        "PAGE_TOKEN_INVALID",
    )
