from typing import Any

import grpc
import pytest

from harness import (
    Client,
    FrozenClock,
    at,
    get_session,
    refused,
    register_agent,
    running_session,
    start_session,
    submit,
)
from infrascout.sessions.v1 import agent_pb2, session_service_pb2
from infrascout.sessions.v1 import agent_service_pb2 as pb


async def get_agent(client: Client, agent_id: str) -> agent_pb2.Agent:
    return (await client.agents.GetAgent(pb.GetAgentRequest(agent_id=agent_id))).agent


async def list_agents(client: Client, **fields: Any) -> pb.ListAgentsResponse:
    return await client.agents.ListAgents(pb.ListAgentsRequest(**fields))


async def agent_ids(client: Client, **fields: Any) -> list[str]:
    """All that match, page by page."""
    found: list[str] = []
    page_token = ""
    while True:
        page = await list_agents(client, page_token=page_token, **fields)
        found += [agent.agent_id for agent in page.agents]
        page_token = page.next_page_token
        if not page_token:
            return found
        assert page.agents


async def test_an_agent_is_registered(client: Client) -> None:
    response = await client.agents.RegisterAgent(
        pb.RegisterAgentRequest(
            agent_id="ag_3f8a1c2d",
            hostname="Web-1.example",
            os="Debian 12",
            capabilities=["shell", "ldap", "shell"],
        )
    )
    assert response == pb.RegisterAgentResponse(
        agent=agent_pb2.Agent(
            agent_id="ag_3f8a1c2d",
            hostname="Web-1.example",
            os="Debian 12",
            capabilities=["shell", "ldap", "shell"],
            register_time=at(0),
            update_time=at(0),
        )
    )
    reply = await client.agents.GetAgent(pb.GetAgentRequest(agent_id="ag_3f8a1c2d"))
    assert reply == pb.GetAgentResponse(agent=response.agent)


async def test_registering_again_replaces_the_whole(client: Client, clock: FrozenClock) -> None:
    await register_agent(client, "ag_1", hostname="old", os="Debian 12", capabilities=["shell"])
    clock.advance(5)
    agent = await register_agent(client, "ag_1", hostname="new")
    assert agent == agent_pb2.Agent(
        agent_id="ag_1", hostname="new", register_time=at(0), update_time=at(5)
    )
    assert agent == await get_agent(client, "ag_1")
    assert await agent_ids(client) == ["ag_1"]


async def test_registering_the_same_again_changes_the_update_time_alone(
    client: Client, clock: FrozenClock
) -> None:
    first = await register_agent(client, os="Debian 12")
    clock.advance(5)
    second = await register_agent(client, os="Debian 12")
    assert second.update_time == at(5)
    second.update_time.CopyFrom(first.update_time)
    assert second == first


async def test_a_session_keeps_the_hostname_it_started_with(client: Client) -> None:
    await register_agent(client, hostname="old")
    session = await start_session(client)
    await register_agent(client, hostname="new")
    assert (await get_session(client, session.session_id)).hostname == "old"
    await submit(client, session.session_id)
    assert (await start_session(client)).hostname == "new"


async def test_an_unknown_agent_is_not_found(client: Client) -> None:
    await register_agent(client, "ag_1")
    answer = await refused(
        get_agent(client, "AG_1"), grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND", agent_id="AG_1"
    )
    assert "AG_1" in answer.message
    assert "RegisterAgent" in answer.message


# ListAgents.


async def test_no_agents_are_an_empty_page(client: Client) -> None:
    assert await list_agents(client) == pb.ListAgentsResponse()


async def test_agents_are_listed_whole_and_by_the_bytes_of_their_id(client: Client) -> None:
    names = ["b", "a", "B", "_", "a-1", "a.1", "a:1", "10", "9"]
    agents = {name: await register_agent(client, name, os=f"os of {name}") for name in names}
    page = await list_agents(client)
    assert page == pb.ListAgentsResponse(agents=[agents[name] for name in sorted(names)])


async def test_a_page_holds_20_agents_or_the_limit_or_200(client: Client) -> None:
    ids = [f"ag_{n:03}" for n in range(202)]
    for agent_id in ids:
        await register_agent(client, agent_id)
    for limit, held in ((0, 20), (1, 1), (199, 199), (200, 200), (201, 200), (2**31 - 1, 200)):
        page = await list_agents(client, limit=limit)
        assert [agent.agent_id for agent in page.agents] == ids[:held], limit
        assert page.next_page_token


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
async def test_pages_hold_every_agent_once_and_the_last_has_no_token(
    client: Client, limit: int
) -> None:
    for n in range(7):
        await register_agent(client, f"ag_{n}")
    assert await agent_ids(client, limit=limit) == [f"ag_{n}" for n in range(7)]


async def test_agents_registered_between_two_pages_repeat_none(client: Client) -> None:
    for name in ("b", "d", "f"):
        await register_agent(client, name)
    first = await list_agents(client, limit=2)
    for name in ("a", "c", "e", "d"):
        await register_agent(client, name)
    second = await list_agents(client, page_token=first.next_page_token)
    assert [agent.agent_id for agent in first.agents] == ["b", "d"]
    assert [agent.agent_id for agent in second.agents] == ["e", "f"]


@pytest.mark.parametrize(
    ("hostname", "found"),
    [
        ("web-1", ["ag_1", "ag_2"]),
        ("WEB-1", ["ag_1", "ag_2"]),
        ("wEb-1", ["ag_1", "ag_2"]),
        ("web", []),
        ("web-1 ", []),
        ("%", []),
        ("müller", ["ag_4"]),
        ("MüLLER", ["ag_4"]),
        ("MÜLLER", []),
    ],
)
async def test_a_hostname_is_found_whole_in_any_ascii_case(
    client: Client, hostname: str, found: list[str]
) -> None:
    for agent_id, registered in [
        ("ag_1", "web-1"),
        ("ag_2", "Web-1"),
        ("ag_3", "web-10"),
        ("ag_4", "Müller"),
    ]:
        await register_agent(client, agent_id, hostname=registered)
    assert await agent_ids(client, hostname=hostname, limit=1) == found


async def test_a_page_ends_early_at_1_mib(client: Client) -> None:
    # 1,000 names of 64 characters are about 66 kB.
    capabilities = [f"{'c' * 60}{n:04}" for n in range(1000)]
    for n in range(20):
        await register_agent(client, f"ag_{n:02}", capabilities=capabilities)
    page = await list_agents(client)
    assert 900_000 < page.ByteSize() <= 1024 * 1024
    assert page.next_page_token
    assert await agent_ids(client) == [f"ag_{n:02}" for n in range(20)]


async def test_a_token_may_come_with_another_limit(client: Client) -> None:
    for n in range(5):
        await register_agent(client, f"ag_{n}")
    first = await list_agents(client, limit=1)
    second = await list_agents(client, limit=3, page_token=first.next_page_token)
    assert [agent.agent_id for agent in second.agents] == ["ag_1", "ag_2", "ag_3"]


@pytest.mark.parametrize("case", ["another hostname", "cut", "longer", "made up", "of sessions"])
async def test_any_other_token_is_invalid(client: Client, case: str) -> None:
    for name in ("ag_1", "ag_2"):
        await running_session(client, name)
    good = (await list_agents(client, limit=1)).next_page_token
    sessions = await client.sessions.ListSessions(session_service_pb2.ListSessionsRequest(limit=1))
    fields = {
        "another hostname": {"page_token": good, "hostname": "web-1"},
        "cut": {"page_token": good[:-1]},
        "longer": {"page_token": good + "A"},
        "made up": {"page_token": "2"},
        "of sessions": {"page_token": sessions.next_page_token},
    }[case]
    answer = await refused(
        list_agents(client, **fields), grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"
    )
    assert answer.fields == ["page_token"]
