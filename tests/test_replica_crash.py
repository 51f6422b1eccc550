"""kill -9 of replicas under load: clients that repeat what is UNAVAILABLE notice nothing of it."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import grpc

from harness import at, get_session, list_executions, list_insights, record_request
from infrascout.sessions.v1 import (
    agent_service_pb2,
    execution_pb2,
    insight_pb2,
    recording_service_pb2,
    session_pb2,
    session_service_pb2,
)
from infrascout_sessions.client import SessionsClient
from replicas import replicas, until

_ASSESSORS = 16
_RECORDS = 24


class _Assessor:
    """Runs a session of its own, and remembers what it was answered."""

    def __init__(self, client: SessionsClient, number: int) -> None:
        self._client = client
        self._agent_id = f"ag_{number}"
        self.session = session_pb2.Session()
        self.executions: list[execution_pb2.Execution] = []
        self.insights: list[insight_pb2.Insight] = []
        self.followed: list[int] = []

    async def run(self) -> None:
        await self._client.register_agent(
            agent_service_pb2.RegisterAgentRequest(agent_id=self._agent_id, hostname="web-1")
        )
        self.session = await self._client.start_session(
            session_service_pb2.StartSessionRequest(agent_id=self._agent_id, playbook="p")
        )
        following = asyncio.create_task(self._follow(self.session.session_id))
        for number in range(_RECORDS):
            if number % 4 == 0:
                self.executions.append(await self._in_steps(f"command {number}"))
            else:
                request = record_request(self.session.session_id, command=f"command {number}")
                self.executions.append(await self._client.record_execution(request))
            if number % 6 == 0:
                self.insights.append(await self._save(f"tcp/{number}"))
        self.session = await self._client.submit_session(
            session_service_pb2.SubmitSessionRequest(
                session_id=self.session.session_id, summary="done"
            )
        )
        await following

    async def _in_steps(self, command: str) -> execution_pb2.Execution:
        session_id = self.session.session_id
        begun = await self._client.begin_execution(
            recording_service_pb2.BeginExecutionRequest(
                session_id=session_id, command=command, capability="shell", start_time=at(0)
            )
        )
        await self._client.append_output(
            recording_service_pb2.AppendOutputRequest(
                session_id=session_id,
                sequence=begun.sequence,
                stream=execution_pb2.OUTPUT_STREAM_STDOUT,
                data=command.encode(),
            )
        )
        return await self._client.finish_execution(
            recording_service_pb2.FinishExecutionRequest(
                session_id=session_id, sequence=begun.sequence, exit_code=0, end_time=at(1)
            )
        )

    async def _save(self, key: str) -> insight_pb2.Insight:
        return await self._client.save_insight(
            recording_service_pb2.SaveInsightRequest(
                session_id=self.session.session_id, category="open_ports", key=key, value="open"
            )
        )

    async def _follow(self, session_id: str) -> None:
        request = session_service_pb2.ListExecutionsRequest(session_id=session_id, follow=True)
        async with aclosing(self._client.list_executions(request)) as executions:
            async for one in executions:
                if one.state != execution_pb2.EXECUTION_STATE_UNFINISHED:
                    self.followed.append(one.sequence)


async def test_clients_finish_on_the_replicas_that_are_left(
    postgres_url: str, tmp_path: Path
) -> None:
    async with replicas(postgres_url, tmp_path) as running:
        # As a load balancer would: to any of them, and to none that is down.
        addresses = ",".join(replica.service.address for replica in running)
        options = (("grpc.lb_policy_name", "round_robin"), ("grpc.enable_http_proxy", 0))
        async with grpc.aio.insecure_channel(f"ipv4:{addresses}", options=options) as channel:
            client = SessionsClient.of(channel, deadline_seconds=30)
            assessors = [_Assessor(client, number) for number in range(_ASSESSORS)]

            def recorded() -> int:
                return sum(len(assessor.executions) for assessor in assessors)

            async with asyncio.TaskGroup() as tasks:
                runs = [tasks.create_task(assessor.run()) for assessor in assessors]
                for replica in running[:2]:
                    acknowledged = recorded() + _ASSESSORS * _RECORDS // 8
                    await until(lambda: recorded() >= acknowledged, 60)  # noqa: B023
                    await replica.service.kill()
                assert not any(run.done() for run in runs), "killed too late"
        left = running[2].client
        for assessor in assessors:
            session_id = assessor.session.session_id
            assert await get_session(left, session_id) == assessor.session
            assert assessor.session.execution_count == _RECORDS
            # What was acknowledged, each once, and nothing besides.
            assert await list_executions(left, session_id) == assessor.executions
            assert await list_insights(left, session_id) == assessor.insights
            assert sorted(assessor.followed) == list(range(1, _RECORDS + 1))
