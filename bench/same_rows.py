"""The rows that the service stores for recorded executions, written by raw loops without it.

Into its own tables, made by its own migrations, with its own constraints: the session's gate, the
executions, their outputs, the requests that may be repeated, and who recorded.
"""

import asyncio
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from bench import samples
from bench.databases import Postgres, Sqlite

SESSION = samples.session_id(0)
ACTOR = "service:local"
TIME = samples.TIME_SECONDS * 1_000_000
DIGEST = bytes(range(32))
SHA256 = bytes.fromhex(samples.OUTPUT_SHA256)
OUTPUT = samples.OUTPUT.encode()
# How many rows a second are made beforehand, at most; too few only end a measurement early.
PREPARED_PER_SECOND = 60_000

INSERTS = {"executions": 16, "outputs": 5, "requests": 6}
GATE = (
    "UPDATE sessions SET execution_count = execution_count + ?, last_activity_time = ?"
    " WHERE session_id = ? AND status = 'running' RETURNING execution_count"
)
RECORDER = "INSERT INTO session_recorders VALUES (?, ?) ON CONFLICT DO NOTHING"
START = (
    f"INSERT INTO agents VALUES ('a', 'h', 'h', '', '[]', {TIME}, {TIME})",
    f"INSERT INTO sessions VALUES ('{SESSION}', 'a', 'h', 'p', 'd', 'running', '', 0, 0, 0, '',"
    f" {TIME}, '{ACTOR}', {TIME}, NULL, NULL, NULL, NULL, '', 'h', NULL)",
)


@dataclass(frozen=True)
class Rows:
    """What one transaction inserts, as plain tuples."""

    executions: list[tuple[Any, ...]]
    outputs: list[tuple[Any, ...]]
    requests: list[tuple[Any, ...]]


def _prepare(rows: int, seconds: float) -> list[Rows]:
    count = int(PREPARED_PER_SECOND * seconds)
    return [_rows(range(first, first + rows)) for first in range(1, count + 1, rows)]


def _rows(numbers: range) -> Rows:
    return Rows(
        [
            (
                *(SESSION, n, samples.execution_id(n), samples.COMMAND, samples.CAPABILITY, "", 0),
                *(TIME, TIME, TIME, TIME, ACTOR, len(OUTPUT), SHA256, None, None),
            )
            for n in numbers
        ],
        [(SESSION, n, 1, 0, OUTPUT) for n in numbers],
        [
            (SESSION, "RecordExecution", ACTOR, samples.request_id("0000", n), DIGEST, str(n))
            for n in numbers
        ],
    )


def sqlite_rows_per_second(database: Sqlite, name: str, rows: int, seconds: float) -> float:
    """Rows recorded, committed `rows` at a time as durably as the service does."""
    database.url(name)
    prepared = _prepare(rows, seconds)
    connection = sqlite3.connect(database.path(name), isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        for statement in START:
            connection.execute(statement)
        inserts = {
            table: f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})"
            for table, columns in INSERTS.items()
        }
        start, done = time.perf_counter(), 0
        for group in prepared:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(GATE, (rows, TIME, SESSION)).fetchall()
            for table, insert in inserts.items():
                connection.executemany(insert, getattr(group, table))
            connection.execute(RECORDER, (SESSION, ACTOR))
            connection.execute("COMMIT")
            done += rows
            if time.perf_counter() - start >= seconds:
                break
        return done / (time.perf_counter() - start)
    finally:
        connection.close()


def postgres_rows_per_second(database: Postgres, name: str, rows: int, seconds: float) -> float:
    """The same on asyncpg: executemany into each table, `rows` a transaction."""
    return asyncio.run(_postgres_rows_per_second(database.dsn(name), rows, seconds))


async def _postgres_rows_per_second(dsn: str, rows: int, seconds: float) -> float:
    import asyncpg

    prepared = _prepare(rows, seconds)
    connection = await asyncpg.connect(dsn)
    try:
        for statement in START:
            await connection.execute(statement)
        gate, recorder = _numbered(GATE), _numbered(RECORDER)
        inserts = {
            table: _numbered(f"INSERT INTO {table} VALUES ({', '.join('?' * columns)})")
            for table, columns in INSERTS.items()
        }
        start, done = time.perf_counter(), 0
        for group in prepared:
            async with connection.transaction():
                await connection.fetchval(gate, rows, TIME, SESSION)
                for table, insert in inserts.items():
                    await connection.executemany(insert, getattr(group, table))
                await connection.execute(recorder, SESSION, ACTOR)
            done += rows
            if time.perf_counter() - start >= seconds:
                break
        return done / (time.perf_counter() - start)
    finally:
        await connection.close()


def _numbered(sql: str) -> str:
    """With the parameters as PostgreSQL has them: $1, $2 and so on."""
    first, *others = sql.split("?")
    return first + "".join(f"${n}{text}" for n, text in enumerate(others, 1))
