"""A database that an earlier revision filled is served as it is; a newer one is refused."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

import commands
from harness import (
    collect,
    connected,
    database_connection,
    get_session,
    list_executions,
    list_insights,
    record,
    record_request,
    refused,
    running_session,
    serving,
)
from infrascout.sessions.v1 import (
    actor_pb2,
    agent_service_pb2,
    execution_pb2,
    insight_pb2,
    recording_service_pb2,
    session_pb2,
    session_service_pb2,
)
from infrascout_sessions.storage.migrations import configuration
from postgres_server import PostgresServer

REVISIONS: Final = [
    script.revision for script in ScriptDirectory.from_config(configuration()).walk_revisions()
][::-1]

SECOND: Final = 1_000_000
MEBIBYTE: Final = 1024 * 1024
BINARY: Final = bytes(range(256))
CHUNKS: Final = (b"\xfe" * MEBIBYTE, b"\xff" * 1000)

Rows = Sequence[Mapping[str, Any]]


def _session(name: str, status: str, **values: Any) -> Mapping[str, Any]:
    empty = dict.fromkeys(("description", "status_reason", "summary", "review_comment"), "")
    counts = dict.fromkeys(("execution_count", "failed_execution_count", "insight_count"), 0)
    unset = dict.fromkeys(("submit_time", "submit_actor", "end_time", "end_actor"))
    return {
        **empty,
        **counts,
        **unset,
        "session_id": f"sess_{name}",
        "agent_id": "ag_1",
        "hostname": "Web-1",
        "hostname_lower": "web-1",
        "playbook": "linux-baseline",
        "status": status,
        "start_time": 1 * SECOND,
        "start_actor": "service:local",
        "last_activity_time": 9 * SECOND,
        **values,
    }


def _execution(sequence: int, **values: Any) -> Mapping[str, Any]:
    return {
        "session_id": "sess_running",
        "sequence": sequence,
        "execution_id": f"exec_{sequence}",
        "command": "uname -a",
        "capability": "shell",
        "step": "1.1",
        "exit_code": 0,
        "start_time": 2 * SECOND,
        "end_time": 3 * SECOND,
        "record_time": 4 * SECOND,
        "finish_record_time": 4 * SECOND,
        "actor": "service:local",
        "output_size": None,
        "output_sha256": None,
        "error_output_size": None,
        "error_output_sha256": None,
        **values,
    }


def _output(sequence: int, stream: int, offset: int, data: bytes) -> Mapping[str, Any]:
    return {
        "session_id": "sess_running",
        "sequence": sequence,
        "stream": stream,
        "byte_offset": offset,
        "data": data,
    }


def _insight(revision: int, value: str) -> Mapping[str, Any]:
    return {
        "session_id": "sess_running",
        "position": 1,
        "revision": revision,
        "category": "open_ports",
        "key": "tcp/22",
        "value": value,
        "severity": "high",
        "evidence": "naïve 日本",
        "affected_resources": '["tcp/22"]',
        "remediation_steps": "[]",
        "execution_sequences": "[1]",
        "create_time": 5 * SECOND,
        "update_time": (4 + revision) * SECOND,
        "actor": "service:local",
    }


SUBMITTED: Final = {"summary": "done", "submit_time": 5 * SECOND, "submit_actor": "service:local"}
ENDED: Final = {"end_time": 6 * SECOND, "end_actor": "human:ada"}

# What each revision could hold, in its own columns; one that is not here had those of the one
# before it. Never change an entry: databases like it exist.
FILLED: Final[Mapping[str, Mapping[str, Rows]]] = {
    "0001": {
        "agents": [
            {
                "agent_id": "ag_1",
                "hostname": "Web-1",
                "hostname_lower": "web-1",
                "os": "Debian 12",
                "capabilities": '["shell", "ldap"]',
                "register_time": 1 * SECOND,
                "update_time": 2 * SECOND,
            }
        ],
        "sessions": [
            _session(
                "running", "running", execution_count=4, failed_execution_count=1, insight_count=1
            ),
            _session("pending", "pending_review", **SUBMITTED),
            _session("completed", "completed", review_comment="good", **SUBMITTED, **ENDED),
            _session("failed", "failed", status_reason="broke", **ENDED),
            _session("interrupted", "interrupted", status_reason="idle for 2 h", **ENDED),
        ],
        "session_recorders": [{"session_id": "sess_running", "actor": "service:local"}],
        "executions": [
            _execution(
                1,
                output_size=len(BINARY),
                output_sha256=sha256(BINARY).digest(),
                error_output_size=0,
                error_output_sha256=sha256(b"").digest(),
            ),
            _execution(2, exit_code=None),
            _execution(
                3,
                output_size=len(b"".join(CHUNKS)),
                output_sha256=sha256(b"".join(CHUNKS)).digest(),
            ),
            _execution(
                4, exit_code=None, end_time=None, finish_record_time=None, error_output_size=5
            ),
        ],
        "outputs": [
            _output(1, 1, 0, BINARY),
            _output(3, 1, 0, CHUNKS[0]),
            _output(3, 1, MEBIBYTE, CHUNKS[1]),
            _output(4, 2, 0, b"so fa"),
        ],
        "insights": [_insight(1, "open"), _insight(2, "wide open")],
        "requests": [
            {
                "session_id": "sess_running",
                "rpc": "RecordExecution",
                "actor": "service:local",
                "request_id": "known",
                "digest": sha256(b"what was asked").digest(),
                "resource": "1",
            }
        ],
    },
}


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path, postgres: PostgresServer) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'sessions.db'}"
    return await postgres.new_database()


def upgrade_to(revision: str, connection: sa.Connection) -> None:
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def fill_at(revision: str, url: str) -> None:
    filled = FILLED[max(known for known in FILLED if known <= revision)]
    async with database_connection(url) as connection:
        await connection.run_sync(partial(upgrade_to, revision))
        for table, rows in filled.items():
            names = ", ".join(rows[0])
            values = ", ".join(f":{name}" for name in rows[0])
            insert = sa.text(f"INSERT INTO {table} ({names}) VALUES ({values})")
            await connection.execute(insert, [dict(row) for row in rows])


async def revision_of(url: str) -> list[str]:
    async with database_connection(url) as connection:
        return list(await connection.scalars(sa.text("SELECT version_num FROM alembic_version")))


@pytest.mark.parametrize("revision", REVISIONS[:-1])
async def test_what_an_earlier_revision_kept_is_served(revision: str, url: str) -> None:
    await fill_at(revision, url)

    async with serving(url, idle_timeout_seconds=0) as client:
        assert await revision_of(url) == REVISIONS[-1:]

        agents = await client.agents.ListAgents(agent_service_pb2.ListAgentsRequest())
        assert [(agent.agent_id, agent.hostname) for agent in agents.agents] == [("ag_1", "Web-1")]
        assert list(agents.agents[0].capabilities) == ["shell", "ldap"]

        statuses = {}
        for name in ("running", "pending", "completed", "failed", "interrupted"):
            session = await get_session(client, f"sess_{name}")
            statuses[name] = session_pb2.SessionStatus.Name(session.status)
            assert session.transitions[0].actor == actor_pb2.Actor(
                subject="local", kind=actor_pb2.ACTOR_KIND_SERVICE
            )
        assert statuses == {
            "running": "SESSION_STATUS_RUNNING",
            "pending": "SESSION_STATUS_PENDING_REVIEW",
            "completed": "SESSION_STATUS_COMPLETED",
            "failed": "SESSION_STATUS_FAILED",
            "interrupted": "SESSION_STATUS_INTERRUPTED",
        }
        completed = await get_session(client, "sess_completed")
        assert (completed.summary, completed.review.comment) == ("done", "good")
        assert completed.review.reviewer.subject == "ada"
        assert completed.end_time.ToMicroseconds() == 6 * SECOND
        assert (await get_session(client, "sess_failed")).status_reason == "broke"
        listed = await client.sessions.ListSessions(
            session_service_pb2.ListSessionsRequest(hostname="WEB-1")
        )
        assert len(listed.sessions) == 5

        first, killed, large, unfinished = await list_executions(client, "sess_running")
        assert first.output.binary == BINARY
        assert first.output.sha256 == sha256(BINARY).hexdigest()
        assert first.HasField("error_output")
        assert first.error_output.WhichOneof("content") == "text"
        assert (first.exit_code, first.step) == (0, "1.1")
        assert killed.state == execution_pb2.EXECUTION_STATE_KILLED
        assert not killed.HasField("output")
        assert (large.output.size_bytes, large.output.truncated) == (MEBIBYTE + 1000, True)
        read = session_service_pb2.ReadOutputRequest(
            session_id="sess_running", sequence=3, stream=execution_pb2.OUTPUT_STREAM_STDOUT
        )
        pieces = await collect(client.sessions.ReadOutput(read))
        assert b"".join(piece.data for piece in pieces) == b"".join(CHUNKS)
        assert unfinished.state == execution_pb2.EXECUTION_STATE_UNFINISHED
        assert unfinished.error_output.text == "so fa"
        failed = await list_executions(client, "sess_running", failed_only=True)
        assert [execution.sequence for execution in failed] == [2]

        insights = await list_insights(client, "sess_running", all_revisions=True)
        assert [(insight.revision, insight.value) for insight in insights] == [
            (1, "open"),
            (2, "wide open"),
        ]
        assert insights[1].severity == insight_pb2.SEVERITY_HIGH
        assert insights[1].evidence == "naïve 日本"

        # It goes on from there.
        asked = record_request("sess_running", request_id="known")
        await refused(
            client.recording.RecordExecution(asked),
            grpc.StatusCode.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
            request_id="known",
        )
        finish = recording_service_pb2.FinishExecutionRequest(
            session_id="sess_running", sequence=4, exit_code=0, end_time=unfinished.start_time
        )
        finished = (await client.recording.FinishExecution(finish)).execution
        assert finished.error_output.sha256 == sha256(b"so fa").hexdigest()
        assert (await record(client, "sess_running")).sequence == 5


async def test_an_upgrade_keeps_every_row(url: str) -> None:
    """From the first revision to each next one: none of them drops what it does not understand."""
    await fill_at(REVISIONS[0], url)
    before = await row_counts(url)
    for revision in REVISIONS[1:]:
        async with database_connection(url) as connection:
            await connection.run_sync(partial(upgrade_to, revision))
        assert (await row_counts(url)).items() >= before.items()


async def row_counts(url: str) -> dict[str, int]:
    async with database_connection(url) as connection:
        return {
            table: int(await connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) or 0)
            for table in FILLED["0001"]
        }


@pytest.mark.parametrize("arguments", [("serve", "--listen", "127.0.0.1:0"), ("migrate",)])
async def test_a_newer_revision_is_refused(arguments: tuple[str, ...], url: str) -> None:
    await fill_at(REVISIONS[-1], url)
    async with database_connection(url) as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))

    code, said = await commands.run(*arguments, "--database-url", url)

    assert code == 1
    assert said.strip().splitlines()[-1] == (
        "infrascout-sessions: the database is at revision 9999, which this version does not know: "
        "run the version that migrated it, or a later one"
    )
    assert "Traceback" not in said
    assert await revision_of(url) == ["9999"]


async def test_replicas_started_together_migrate_once(postgres: PostgresServer) -> None:
    url = await postgres.new_database()
    serve = ("serve", "--listen", "127.0.0.1:0", "--database-url", url)
    replicas = [await commands.start(*serve) for _ in range(4)]
    try:
        addresses = await asyncio.gather(*(serving_address(replica) for replica in replicas))
        assert await revision_of(url) == REVISIONS[-1:]
        for number, address in enumerate(addresses):
            async with connected(address) as client:
                session_id = await running_session(client, f"ag_{number}")
                assert (await record(client, session_id)).sequence == 1
    finally:
        for replica in replicas:
            if replica.returncode is None:
                replica.kill()
            await replica.communicate()


async def serving_address(replica: asyncio.subprocess.Process) -> str:
    """Where it serves, once it does."""
    assert replica.stdout is not None
    said = ""
    async with asyncio.timeout(60):
        async for line in replica.stdout:
            said += line.decode()
            serves = re.search(r"serves on (\S+) ", said)
            if serves is not None:
                return serves.group(1)
    raise AssertionError(f"it ended: {said}")
