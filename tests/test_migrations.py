"""Migrations: they make the schema, however often they run, and refuse what is not ours."""

import asyncio
import re
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from harness import (
    CONSOLE_SCRIPT,
    clean_environment,
    database_connection,
    list_executions,
    record,
    running_session,
    serving,
)
from infrascout_sessions.storage import schema
from infrascout_sessions.storage.database import DatabaseSetupError, migrate_database


def run(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(CONSOLE_SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )


def definitions(path: Path) -> dict[str, set[str]]:
    """Every table and index of an SQLite file, each as the set of its lines."""
    database = sqlite3.connect(path)
    rows = database.execute(
        "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
        " AND name <> 'alembic_version'"
    ).fetchall()
    database.close()
    # A column that was added later stands behind the last constraint, on its line.
    return {
        name: {line.strip(" \t,") for line in re.sub(r", (\w+ TEXT)\b", r"\n\1", sql).splitlines()}
        for name, sql in rows
    }


# What they make.


async def test_the_migrated_schema_is_the_one_of_the_program(database_url: str) -> None:
    def differences(connection: sa.Connection) -> Any:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return compare_metadata(context, schema.metadata)

    await migrate_database(database_url)
    async with database_connection(database_url) as connection:
        assert await connection.run_sync(differences) == []


async def test_sqlite_constraints_and_predicates_are_those_of_the_program(tmp_path: Path) -> None:
    """Of which alembic sees little."""
    await migrate_database(f"sqlite+aiosqlite:///{tmp_path}/migrated.db")
    engine = sa.create_engine(f"sqlite:///{tmp_path}/created.db")
    schema.metadata.create_all(engine)
    engine.dispose()
    created = definitions(tmp_path / "created.db")
    assert len(created) > 10
    assert definitions(tmp_path / "migrated.db") == created


AGENT = {
    "agent_id": "ag_1",
    "hostname": "web-1",
    "hostname_lower": "web-1",
    "os": "",
    "capabilities": "[]",
    "register_time": 1,
    "update_time": 1,
}
RUNNING = {
    "session_id": "sess_1",
    "agent_id": "ag_1",
    "hostname": "web-1",
    "hostname_lower": "web-1",
    "playbook": "p",
    "description": "",
    "status": "running",
    "status_reason": "",
    "execution_count": 0,
    "failed_execution_count": 0,
    "insight_count": 0,
    "summary": "",
    "start_time": 1,
    "start_actor": "service:local",
    "last_activity_time": 1,
    "review_comment": "",
}
SUBMITTED: dict[str, Any] = {"submit_time": 1, "submit_actor": "service:local"}
ENDED = {"end_time": 1, "end_actor": "service:local"}
EXECUTION = {
    "session_id": "sess_1",
    "sequence": 1,
    "execution_id": "exec_1",
    "command": "uname",
    "capability": "shell",
    "step": "",
    "start_time": 1,
    "record_time": 1,
    "actor": "service:local",
}
OUTPUT = {"session_id": "sess_1", "sequence": 1, "stream": 1, "byte_offset": 0, "data": b"Linux"}
INSIGHT = {
    "session_id": "sess_1",
    "position": 1,
    "revision": 1,
    "category": "c",
    "key": "k",
    "value": "v",
    "severity": "info",
    "evidence": "",
    "affected_resources": "[]",
    "remediation_steps": "[]",
    "execution_sequences": "[]",
    "create_time": 1,
    "update_time": 1,
    "actor": "service:local",
}
RECORDER = {"session_id": "sess_1", "actor": "service:local"}
REQUEST = {
    "session_id": "sess_1",
    "rpc": "RecordExecution",
    "actor": "service:local",
    "request_id": "1",
    "digest": b"1",
    "resource": "1",
}

TOKEN = {
    "digest": b"1",
    "name": "tool",
    "kind": "service",
    "roles": "recorder",
    "create_time": 1,
}

EXISTING: list[tuple[sa.Table, dict[str, Any]]] = [
    (schema.agents, AGENT),
    (schema.sessions, RUNNING),
    (schema.executions, EXECUTION),
    (schema.outputs, OUTPUT),
    (schema.insights, INSIGHT),
    (schema.session_recorders, RECORDER),
    (schema.requests, REQUEST),
    (schema.tokens, TOKEN),
]
OTHER = {"session_id": "sess_2"}
OTHER_TOKEN = {"digest": b"2", "name": "other"}

REFUSED: list[tuple[str, sa.Table, dict[str, Any]]] = [
    ("agents_pkey", schema.agents, AGENT),
    ("tokens_pkey", schema.tokens, {**TOKEN, "name": "other"}),
    ("tokens_one_active_per_name", schema.tokens, {**TOKEN, "digest": b"2"}),
    ("tokens_kind_is_known", schema.tokens, {**TOKEN, **OTHER_TOKEN, "kind": "robot"}),
    ("tokens_reviewer_is_human", schema.tokens, {**TOKEN, **OTHER_TOKEN, "roles": "reviewer"}),
    ("sessions_pkey", schema.sessions, {**RUNNING, "status": "failed", **ENDED}),
    ("sessions_one_running_per_agent", schema.sessions, {**RUNNING, **OTHER}),
    *(
        (name, schema.sessions, {**RUNNING, **OTHER, **row})
        for name, row in [
            ("sessions_agent_id_exists", {"agent_id": "ag_2"}),
            ("sessions_status_is_known", {"status": "paused"}),
            ("sessions_status_is_known", {"status": "RUNNING"}),
            ("sessions_status_is_known", {"status": ""}),
            ("sessions_submitted_has_time_and_actor", SUBMITTED),
            ("sessions_submitted_has_time_and_actor", {"status": "pending_review"}),
            (
                "sessions_submitted_has_time_and_actor",
                {"status": "pending_review", "submit_time": 1},
            ),
            (
                "sessions_submitted_has_time_and_actor",
                {"status": "pending_review", "submit_actor": "service:local"},
            ),
            (
                "sessions_submitted_has_time_and_actor",
                {"status": "completed", "end_time": 1, "end_actor": "human:ada"},
            ),
            ("sessions_submitted_has_time_and_actor", {"status": "failed", **SUBMITTED, **ENDED}),
            ("sessions_final_has_time_and_actor", ENDED),
            ("sessions_final_has_time_and_actor", {"status": "failed"}),
            ("sessions_final_has_time_and_actor", {"status": "interrupted", "end_time": 1}),
            (
                "sessions_final_has_time_and_actor",
                {"status": "pending_review", **SUBMITTED, **ENDED},
            ),
            ("sessions_completed_by_human", {"status": "completed", **SUBMITTED, **ENDED}),
        ]
    ),
    ("executions_pkey", schema.executions, EXECUTION),
    ("executions_sequence_from_one", schema.executions, {**EXECUTION, "sequence": 0}),
    ("executions_session_id_exists", schema.executions, {**EXECUTION, **OTHER}),
    ("outputs_pkey", schema.outputs, OUTPUT),
    ("outputs_stream_is_known", schema.outputs, {**OUTPUT, "stream": 3}),
    ("outputs_execution_exists", schema.outputs, {**OUTPUT, "sequence": 2}),
    ("insights_pkey", schema.insights, {**INSIGHT, "key": "other"}),
    ("insights_one_per_category_and_key", schema.insights, {**INSIGHT, "position": 2}),
    ("insights_session_id_exists", schema.insights, {**INSIGHT, **OTHER}),
    ("session_recorders_pkey", schema.session_recorders, RECORDER),
    ("session_recorders_session_id_exists", schema.session_recorders, {**RECORDER, **OTHER}),
    ("requests_pkey", schema.requests, REQUEST),
]
TAKEN: list[dict[str, Any]] = [
    {"status": "pending_review", **SUBMITTED},
    {"status": "completed", **SUBMITTED, "end_time": 1, "end_actor": "human:ada"},
    {"status": "failed", **ENDED},
    {"status": "interrupted", **ENDED},
]


def said_by_sqlite(name: str, table: sa.Table) -> str:
    """SQLite names no constraint but a CHECK."""
    if name.endswith("_exists"):
        return "FOREIGN KEY constraint failed"
    unique: dict[str, list[str]] = {
        f"{table.name}_pkey": [column.name for column in table.primary_key],
        "sessions_one_running_per_agent": ["agent_id"],
        "tokens_one_active_per_name": ["name"],
        "insights_one_per_category_and_key": ["session_id", "category", "key", "revision"],
    }
    if name in unique:
        columns = ", ".join(f"{table.name}.{column}" for column in unique[name])
        return f"UNIQUE constraint failed: {columns}\n"
    return f"CHECK constraint failed: {name}\n"


async def fill(connection: AsyncConnection) -> None:
    if connection.dialect.name == "sqlite":
        await connection.exec_driver_sql("PRAGMA foreign_keys = ON")
    for table, row in EXISTING:
        await connection.execute(sa.insert(table).values(row))


@pytest.mark.parametrize(
    ("name", "table", "row"), REFUSED, ids=[f"{name}-{n}" for n, (name, *_) in enumerate(REFUSED)]
)
async def test_the_database_refuses(
    database_url: str, name: str, table: sa.Table, row: dict[str, Any]
) -> None:
    await migrate_database(database_url)
    async with database_connection(database_url) as connection:
        await fill(connection)
        with pytest.raises(IntegrityError) as refusal:
            await connection.execute(sa.insert(table).values(row))
        said = f"{refusal.value.orig}\n"
        sqlite = connection.dialect.name == "sqlite"
        assert (said_by_sqlite(name, table) if sqlite else name) in said
        await connection.rollback()


def test_every_constraint_is_in_the_table() -> None:
    dialect: Any = postgresql.dialect  # without types
    named = dialect().identifier_preparer.format_constraint
    constraints = {
        named(constraint)
        for table in schema.metadata.tables.values()
        for constraint in table.constraints
    }
    indexes = {
        index.name
        for table in schema.metadata.tables.values()
        for index in table.indexes
        if index.unique
    }
    assert {name for name, *_ in REFUSED} == constraints | indexes


async def test_the_database_takes_any_number_of_sessions_that_do_not_run(database_url: str) -> None:
    await migrate_database(database_url)
    async with database_connection(database_url) as connection:
        await fill(connection)
        for number, row in enumerate(TAKEN * 3):
            session = {**RUNNING, **row, "session_id": f"sess_1{number}"}
            await connection.execute(sa.insert(schema.sessions).values(session))


# However they are run.


async def test_migrating_again_changes_nothing(database_url: str) -> None:
    async with serving(database_url) as client:
        session_id = await running_session(client)
        made = await record(client, session_id)
    await migrate_database(database_url)
    await migrate_database(database_url)
    async with serving(database_url) as client:
        assert await list_executions(client, session_id) == [made]


async def test_several_may_migrate_at_once(tmp_path: Path) -> None:
    for number in range(10):
        url = f"sqlite+aiosqlite:///{tmp_path}/{number}.db"
        await asyncio.gather(*(migrate_database(url) for _ in range(6)))
        async with serving(url) as client:
            await running_session(client)


def test_several_processes_may_migrate_at_once(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/new/folder/sessions.db"
    for process in [run("migrate", "--database-url", url) for _ in range(3)]:
        output, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
        assert output == "The database is up to date.\n"
    assert "sessions" in definitions(tmp_path / "new/folder/sessions.db")


# What they refuse.


async def test_a_database_of_a_later_version_is_refused_and_left_alone(
    database_url: str, tmp_path: Path
) -> None:
    await migrate_database(database_url)
    async with database_connection(database_url) as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    for command in (("migrate",), ("serve", "--listen", "127.0.0.1:0")):
        process = run(*command, "--database-url", database_url)
        output, errors = process.communicate(timeout=30)
        assert (process.returncode, output) == (1, "")
        assert errors == (
            "infrascout-sessions: the database is at revision 9999, which this version does not "
            "know: run the version that migrated it, or a later one\n"
        )
    async with database_connection(database_url) as connection:
        [version] = await connection.execute(sa.text("SELECT version_num FROM alembic_version"))
        assert version == ("9999",)


async def test_an_sqlite_file_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    database = sqlite3.connect(path)
    # One that comes late among ours: those before it must not stay.
    database.execute("CREATE TABLE outputs (x)")
    database.execute("INSERT INTO outputs VALUES (7)")
    database.commit()
    database.close()
    with pytest.raises(DatabaseSetupError, match=r"theirs\.db cannot be used: table outputs"):
        await migrate_database(f"sqlite+aiosqlite:///{path}")
    database = sqlite3.connect(path)
    assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("outputs",)]
    assert database.execute("SELECT x FROM outputs").fetchall() == [(7,)]
    database.close()
