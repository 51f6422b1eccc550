"""`AgentService`."""

from functools import partial
from typing import Any

from infrascout.sessions.v1 import agent_service_pb2 as pb
from infrascout.sessions.v1.agent_service_pb2_grpc import AgentServiceServicer
from infrascout_sessions.identity import caller
from infrascout_sessions.messages import page_tokens
from infrascout_sessions.messages.pages import fill, page_limit
from infrascout_sessions.messages.requests import request_key
from infrascout_sessions.messages.resources import put_agent
from infrascout_sessions.messages.rules import check
from infrascout_sessions.storage.repository import agents
from infrascout_sessions.storage.statement import Database


class AgentServicer(AgentServiceServicer):
    """Enrols agents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def RegisterAgent(
        self, request: pb.RegisterAgentRequest, context: Any
    ) -> pb.RegisterAgentResponse:
        """Register an agent or update what is known of it."""
        check(request)
        agent = await self._database.write(
            partial(
                agents.register,
                request.agent_id,
                request.hostname,
                request.os,
                tuple(request.capabilities),
                request_key("RegisterAgent", caller.get().actor, request, request.request_id),
            ),
            request.ByteSize(),
        )
        response = pb.RegisterAgentResponse()
        put_agent(response.agent, agent)
        return response

    async def GetAgent(self, request: pb.GetAgentRequest, context: Any) -> pb.GetAgentResponse:
        """Return one agent."""
        check(request)
        agent = await self._database.read(partial(agents.get, request.agent_id))
        response = pb.GetAgentResponse()
        put_agent(response.agent, agent)
        return response

    async def ListAgents(
        self, request: pb.ListAgentsRequest, context: Any
    ) -> pb.ListAgentsResponse:
        """Return a page of agents, by id."""
        check(request)
        filters = ["agents", request.hostname]
        after = page_tokens.read(filters, request.page_token) if request.page_token else ""
        limit = page_limit(request.limit)
        found = await self._database.read(
            partial(agents.page, request.hostname or None, after, limit + 1)
        )
        response = pb.ListAgentsResponse()
        added = fill(response.agents, put_agent, found[:limit])
        if added < len(found):
            response.next_page_token = page_tokens.make(filters, found[added - 1].agent_id)
        return response
