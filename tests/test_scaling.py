"""What docs/scaling.md says to do to a database works on one that is in use."""

import re
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from harness import (
    Client,
    Ids,
    database_connection,
    get_session,
    list_executions,
    record,
    record_request,
    running_session,
    serving,
    submit,
)
from infrascout.sessions.v1 import execution_pb2, recording_service_pb2
from postgres_server import PostgresServer

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "scaling.md"


class LaterIds:
    """UUIDv7 of the month in the document for the first session, of far later for the others."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._moments = chain(["01a2d0000000"], repeat("0fffffffffff"))

    def __call__(self, prefix: str) -> str:
        moment = next(self._moments) if prefix == "sess_" else "01a2d0000000"
        return f"{prefix}{moment}7{next(self._numbers):019x}"


def statements(section: str) -> list[str]:
    """Those of the first SQL of a section."""
    found = re.search(
        rf"^##+ {section}$.*?^```sql\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE
    )
    assert found is not None
    lines = re.sub(r" *--.*", "", found.group(1))
    # The body of the function holds no semicolon.
    return [one.strip() for one in lines.split(";") if one.strip()]


async def run(url: str, sql: list[str]) -> None:
    async with database_connection(url) as connection:
        for one in sql:
            if one not in ("BEGIN", "COMMIT"):
                await connection.exec_driver_sql(one)


async def use(client: Client, agent_id: str) -> str:
    """Everything that touches executions and outputs; gives the session."""
    session_id = await running_session(client, agent_id)
    output = execution_pb2.Output(binary=b"\xff")
    again = record_request(session_id, output=output, request_id="again", exit_code=1)
    for _ in range(2):
        assert (await client.recording.RecordExecution(again)).execution.sequence == 1
    begun = await client.recording.BeginExecution(
        recording_service_pb2.BeginExecutionRequest(
            session_id=session_id,
            command="dump",
            capability="shell",
            start_time=again.start_time,
        )
    )
    of: dict[str, Any] = {"session_id": session_id, "sequence": begun.execution.sequence}
    await client.recording.AppendOutput(
        recording_service_pb2.AppendOutputRequest(
            **of, stream=execution_pb2.OUTPUT_STREAM_STDOUT, data=b"so far"
        )
    )
    await client.recording.FinishExecution(
        recording_service_pb2.FinishExecutionRequest(**of, exit_code=0, end_time=again.end_time)
    )
    return session_id


async def test_partitions_go_on_with_what_there_was(postgres: PostgresServer) -> None:
    url = await postgres.new_database()
    async with serving(url, ids=Ids()) as client:
        before = await use(client, "ag_1")
    await run(url, statements("Partitioning"))

    async with serving(url, ids=LaterIds()) as client:
        sessions = [before, await use(client, "ag_2"), await use(client, "ag_3")]
        assert (await record(client, before)).sequence == 3
        for session_id in sessions:
            first, second = (await list_executions(client, session_id))[:2]
            assert (first.output.binary, second.output.text) == (b"\xff", "so far")
            failed = await list_executions(client, session_id, failed_only=True)
            assert [execution.sequence for execution in failed] == [1]
            assert (await submit(client, session_id)).failed_execution_count == 1
            await get_session(client, session_id)

    async with database_connection(url) as connection:
        for table in ("executions", "outputs"):
            used = await connection.scalars(
                sa.text(f"SELECT DISTINCT tableoid::regclass::text FROM {table} ORDER BY 1")
            )
            assert list(used) == [f"{table}_{part}" for part in ("2027_01", "before", "later")]
        await connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
        await connection.exec_driver_sql(
            "PREPARE page (text) AS SELECT * FROM executions WHERE session_id = $1"
            " AND sequence > 0 ORDER BY sequence LIMIT 10"
        )
        plan = await connection.exec_driver_sql(f"EXPLAIN EXECUTE page ('{before}')")
        assert "Subplans Removed: 2" in "\n".join(row[0] for row in plan)


async def test_the_hot_rows_settings_are_taken(postgres: PostgresServer) -> None:
    url = await postgres.new_database()
    async with serving(url):
        await run(url, statements("Sizing"))
