import asyncio
from typing import Any

import grpc
import pytest

from harness import (
    LOCAL,
    Client,
    FrozenClock,
    at,
    collect,
    get_session,
    list_insights,
    record,
    refused,
    running_session,
    save_insight,
    submit,
)
from infrascout.sessions.v1 import insight_pb2
from infrascout.sessions.v1 import recording_service_pb2 as recording
from infrascout.sessions.v1 import session_service_pb2 as pb

# Two values for each field of a finding besides its identity.
CONTENT: dict[str, tuple[Any, Any]] = {
    "value": ("PostgreSQL listens on all interfaces", "PostgreSQL listens on lo"),
    "severity": (insight_pb2.SEVERITY_HIGH, insight_pb2.SEVERITY_LOW),
    "evidence": ("LISTEN 0.0.0.0:5432", "LISTEN 127.0.0.1:5432"),
    "affected_resources": (["postgresql.service", "tcp/5432"], ["tcp/5432", "postgresql.service"]),
    "remediation_steps": (["set listen_addresses", "restart"], []),
    "execution_sequences": ([2, 1, 2], [1, 2]),
}
FIRST = {field: values[0] for field, values in CONTENT.items()}


async def session_with_two_executions(client: Client) -> str:
    session_id = await running_session(client)
    for _ in range(2):
        await record(client, session_id)
    return session_id


async def revisions(client: Client, session_id: str) -> list[tuple[str, int]]:
    insights = await list_insights(client, session_id, all_revisions=True)
    return [(insight.key, insight.revision) for insight in insights]


async def test_an_insight_is_saved_whole(client: Client, clock: FrozenClock) -> None:
    session_id = await session_with_two_executions(client)
    clock.advance(1)
    response = await client.recording.SaveInsight(
        recording.SaveInsightRequest(
            session_id=session_id, category="open_ports", key="tcp/5432", **FIRST
        )
    )
    expected = insight_pb2.Insight(
        session_id=session_id,
        category="open_ports",
        key="tcp/5432",
        **FIRST,
        revision=1,
        create_time=at(1),
        update_time=at(1),
        actor=LOCAL,
    )
    assert response == recording.SaveInsightResponse(insight=expected)
    stream = client.sessions.ListInsights(pb.ListInsightsRequest(session_id=session_id))
    assert await collect(stream) == [pb.ListInsightsResponse(insight=expected)]


async def test_what_is_not_sent_is_empty_and_the_severity_info(client: Client) -> None:
    session_id = await running_session(client)
    insight = await save_insight(client, session_id, category="c", key="k", value="v")
    assert insight == insight_pb2.Insight(
        session_id=session_id,
        category="c",
        key="k",
        value="v",
        severity=insight_pb2.SEVERITY_INFO,
        revision=1,
        create_time=at(0),
        update_time=at(0),
        actor=LOCAL,
    )


@pytest.mark.parametrize("severity", insight_pb2.Severity.keys()[1:])
async def test_a_severity_is_kept(client: Client, severity: str) -> None:
    session_id = await running_session(client)
    saved = await save_insight(client, session_id, severity=severity)
    assert saved.severity == insight_pb2.Severity.Value(severity)
    assert await list_insights(client, session_id) == [saved]


async def test_unset_and_info_are_the_same_severity(client: Client) -> None:
    session_id = await running_session(client)
    first = await save_insight(client, session_id)
    second = await save_insight(client, session_id, severity=insight_pb2.SEVERITY_INFO)
    assert second == first


@pytest.mark.parametrize("field", CONTENT)
async def test_any_difference_is_a_new_revision(
    client: Client, clock: FrozenClock, field: str
) -> None:
    session_id = await session_with_two_executions(client)
    first = await save_insight(client, session_id, **FIRST)
    clock.advance(1)
    second = await save_insight(client, session_id, **{**FIRST, field: CONTENT[field][1]})
    expected = insight_pb2.Insight()
    expected.CopyFrom(first)
    expected.ClearField(field)
    expected.MergeFrom(insight_pb2.Insight(**{field: CONTENT[field][1]}))
    expected.revision = 2
    expected.update_time.CopyFrom(at(1))
    assert second == expected
    assert await list_insights(client, session_id) == [second]
    assert await list_insights(client, session_id, all_revisions=True) == [first, second]
    assert (await get_session(client, session_id)).insight_count == 1


async def test_no_difference_is_no_revision(client: Client, clock: FrozenClock) -> None:
    session_id = await session_with_two_executions(client)
    first = await save_insight(client, session_id, **FIRST)
    clock.advance(1)
    assert await save_insight(client, session_id, **FIRST) == first
    assert await list_insights(client, session_id, all_revisions=True) == [first]
    assert (await get_session(client, session_id)).insight_count == 1


async def test_a_replacement_is_whole(client: Client) -> None:
    session_id = await session_with_two_executions(client)
    await save_insight(client, session_id, category="c", key="k", **FIRST)
    second = await save_insight(client, session_id, category="c", key="k", value="gone")
    assert second == insight_pb2.Insight(
        session_id=session_id,
        category="c",
        key="k",
        value="gone",
        severity=insight_pb2.SEVERITY_INFO,
        revision=2,
        create_time=at(0),
        update_time=at(0),
        actor=LOCAL,
    )


async def test_going_back_to_an_earlier_content_is_a_new_revision(client: Client) -> None:
    session_id = await running_session(client)
    values = ["open", "closed", "open"]
    saved = [await save_insight(client, session_id, value=value) for value in values]
    assert [insight.revision for insight in saved] == [1, 2, 3]
    assert await list_insights(client, session_id, all_revisions=True) == saved


@pytest.mark.parametrize(
    ("category", "key"),
    [
        ("open_ports", "tcp/23"),
        ("users", "tcp/22"),
        ("open_ports", "TCP/22"),
        ("Open_Ports", "tcp/22"),
        ("open_ports", " tcp/22"),
        ("open_portst", "cp/22"),
    ],
)
async def test_category_and_key_are_the_identity_compared_exactly(
    client: Client, category: str, key: str
) -> None:
    session_id = await running_session(client)
    await save_insight(client, session_id, category="open_ports", key="tcp/22")
    other = await save_insight(client, session_id, category=category, key=key)
    assert other.revision == 1
    assert (await get_session(client, session_id)).insight_count == 2


async def test_sessions_do_not_share_insights(client: Client) -> None:
    first, second = await running_session(client, "ag_1"), await running_session(client, "ag_2")
    await save_insight(client, first, value="one")
    insight = await save_insight(client, second, value="two")
    assert insight.revision == 1
    assert await list_insights(client, second) == [insight]


async def test_insights_are_listed_in_order_of_first_save(client: Client) -> None:
    session_id = await running_session(client)
    for key, value in [("b", "1"), ("a", "1"), ("c", "1"), ("b", "2"), ("a", "2"), ("b", "3")]:
        await save_insight(client, session_id, key=key, value=value)
    newest = [(i.key, i.revision, i.value) for i in await list_insights(client, session_id)]
    assert newest == [("b", 3, "3"), ("a", 2, "2"), ("c", 1, "1")]
    assert await revisions(client, session_id) == [
        ("b", 1),
        ("b", 2),
        ("b", 3),
        ("a", 1),
        ("a", 2),
        ("c", 1),
    ]


async def test_a_session_without_insights_is_an_empty_stream(client: Client) -> None:
    session_id = await running_session(client)
    assert await list_insights(client, session_id) == []
    assert await list_insights(client, session_id, all_revisions=True) == []


async def test_a_long_list_has_no_gap_and_no_repeat(client: Client) -> None:
    session_id = await running_session(client)
    keys = [f"{n:03}" for n in range(101)]
    for value in ("1", "2"):
        for key in keys:
            await save_insight(client, session_id, key=key, value=value)
    assert [insight.key for insight in await list_insights(client, session_id)] == keys
    assert await revisions(client, session_id) == [(key, n) for key in keys for n in (1, 2)]


async def test_insights_can_be_listed_when_the_session_has_ended(client: Client) -> None:
    session_id = await running_session(client)
    insight = await save_insight(client, session_id)
    await submit(client, session_id)
    assert await list_insights(client, session_id) == [insight]


@pytest.mark.parametrize(
    ("named", "first_missing"), [([3], 3), ([1, 7, 2, 5], 7), ([2**31 - 1], 2**31 - 1)]
)
async def test_executions_named_must_exist(
    client: Client, clock: FrozenClock, named: list[int], first_missing: int
) -> None:
    session_id = await session_with_two_executions(client)
    before = await get_session(client, session_id)
    clock.advance(1)
    answer = await refused(
        save_insight(client, session_id, execution_sequences=named),
        grpc.StatusCode.NOT_FOUND,
        "EXECUTION_NOT_FOUND",
        session_id=session_id,
        sequence=str(first_missing),
    )
    assert str(first_missing) in answer.message
    assert await list_insights(client, session_id) == []
    assert await get_session(client, session_id) == before


async def test_a_refused_insight_leaves_nothing_beside_others_that_are_saved(
    client: Client, clock: FrozenClock
) -> None:
    sessions = [await running_session(client, f"ag_{number}") for number in range(20)]
    before = [await get_session(client, session_id) for session_id in sessions]
    clock.advance(1)

    async def save(number: int) -> None:
        if number % 2:
            await save_insight(client, sessions[number])
        else:
            await refused(
                save_insight(client, sessions[number], execution_sequences=[1]),
                grpc.StatusCode.NOT_FOUND,
                "EXECUTION_NOT_FOUND",
                session_id=sessions[number],
                sequence="1",
            )

    await asyncio.gather(*map(save, range(20)))
    for number, session_id in enumerate(sessions):
        session = await get_session(client, session_id)
        assert session.insight_count == number % 2
        assert (session == before[number]) == (not number % 2)


async def test_executions_of_another_session_do_not_count(client: Client) -> None:
    await session_with_two_executions(client)
    other = await running_session(client, "ag_2")
    await refused(
        save_insight(client, other, execution_sequences=[1]),
        grpc.StatusCode.NOT_FOUND,
        "EXECUTION_NOT_FOUND",
        session_id=other,
        sequence="1",
    )


def request_of(session_id: str, size: int) -> recording.SaveInsightRequest:
    """A request of so many bytes, none of whose fields is too long by itself."""
    request = recording.SaveInsightRequest(
        session_id=session_id,
        category="c",
        key="k",
        value="v",
        affected_resources=["x" * 4000] * 200,
    )
    while (missing := size - request.ByteSize()) > 4100:
        request.affected_resources.append("x" * 4000)
    request.evidence = "x" * (missing - 3)
    assert request.ByteSize() == size
    return request


async def test_an_insight_of_1_mib_is_saved_and_one_byte_more_refused(client: Client) -> None:
    session_id = await running_session(client)
    largest = request_of(session_id, 1024 * 1024)
    saved = (await client.recording.SaveInsight(largest)).insight
    assert saved.affected_resources == largest.affected_resources
    assert await list_insights(client, session_id) == [saved]
    too_large = request_of(session_id, 1024 * 1024 + 1)
    answer = await refused(
        client.recording.SaveInsight(too_large),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    assert answer.fields == [""]
    assert "1,048,576" in answer.message
    assert await list_insights(client, session_id) == [saved]
