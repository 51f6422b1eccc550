"""What the statements of the service take by themselves, on SQLite and without the service.

Its own functions run on a connection that takes the time of each statement and asks for its plan.
"""

import random
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from bench import fill, samples
from bench.databases import Sqlite
from infrascout_sessions.lifecycle import Status
from infrascout_sessions.models import (
    LOCAL,
    NewSession,
    RequestKey,
    SessionFilter,
    new_id,
    system_clock,
)
from infrascout_sessions.storage.repository import session_lists, sessions, starts
from infrascout_sessions.storage.sqlite import WRITER_CACHE_KIB, SQLiteConnection

TIMES = 300
LIMIT = 20
REQUEST_ID = "of this benchmark"
OF_REQUEST = (
    f"FROM requests WHERE session_id = '' AND rpc = 'StartSession' AND actor = '{LOCAL.actor}'"
    f" AND request_id = '{REQUEST_ID}'"
)
# As before for the next one; of a query that only reads, nothing.
UNDO = (
    f"DELETE FROM sessions WHERE session_id = (SELECT resource {OF_REQUEST})",
    f"DELETE {OF_REQUEST}",
)

Values = Callable[[random.Random, int], dict[str, Any]]


def _agent(chance: random.Random, size: int) -> dict[str, Any]:
    return {"agent_id": fill.agent_id(chance.randrange(fill.agents(size)))}


def _hostname(chance: random.Random, size: int) -> dict[str, Any]:
    return {"hostname": samples.hostname(chance.randrange(fill.agents(size))).upper()}


def _playbook(chance: random.Random, _: int) -> dict[str, Any]:
    return {"playbook": fill.playbook(chance.randrange(fill.PLAYBOOKS))}


def _status(chance: random.Random, _: int) -> dict[str, Any]:
    return {"status": chance.choice((fill.RUNNING, fill.PENDING, fill.COMPLETED))}


def _started(chance: random.Random, _: int) -> dict[str, Any]:
    start = time.time_ns() // 1000 - chance.randrange(2, fill.DAYS) * fill.DAY_MICROSECONDS
    return {"started_from": start, "started_before": start + fill.DAY_MICROSECONDS}


def _both(one: Values, other: Values) -> Values:
    return lambda chance, size: one(chance, size) | other(chance, size)


FILTERS: dict[str, Values] = {
    "no filter": lambda _chance, _size: {},
    "agent_id": _agent,
    "hostname": _hostname,
    "playbook": _playbook,
    "status": _status,
    "a rare playbook": lambda _chance, _size: {"playbook": fill.RARE_PLAYBOOK},
    "a rare status": lambda _chance, _size: {"status": fill.INTERRUPTED},
    "playbook and status": _both(_playbook, _status),
    "agent_id and status": _both(_agent, _status),
    "started range": _started,
}


class _Watched:
    """As much of a connection as a unit of work uses, with a watch."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw
        self.seconds = 0.0
        self.statements: dict[str, Any] = {}

    def execute(self, sql: str, parameters: Any = ()) -> "_Rows":
        start = time.perf_counter()
        rows = self._raw.execute(sql, parameters).fetchall()
        self.seconds += time.perf_counter() - start
        self.statements[sql] = parameters
        return _Rows(rows)

    def plans(self) -> list[str]:
        return [
            row[3]
            for sql, parameters in self.statements.items()
            for row in self._raw.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)
        ]


class _Rows:
    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def fetchall(self) -> list[Any]:
        return self._rows


def measure(database: Sqlite, name: str, size: int) -> dict[str, Any]:
    """The median µs in SQL and the plans, of each query over `size` sessions."""
    raw = sqlite3.connect(database.path(name), isolation_level=None)
    try:
        raw.execute("PRAGMA foreign_keys = ON")
        raw.execute("PRAGMA synchronous = FULL")
        raw.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
        works = {"GetSession": _get, "StartSession": _start}
        works |= {f"ListSessions, {f}": partial(_list, values) for f, values in FILTERS.items()}
        return {query: _time(raw, work, size) for query, work in works.items()}
    finally:
        raw.close()


def _time(
    raw: sqlite3.Connection,
    work: Callable[[random.Random, int], Callable[[Any], Any]],
    size: int,
) -> dict[str, Any]:
    chance, times, watched = random.Random(size), [], _Watched(raw)
    # The first half warms the cache, which a service that runs has.
    for _ in range(2 * TIMES):
        unit = work(chance, size)
        watched = _Watched(raw)
        raw.execute("BEGIN")
        unit(SQLiteConnection(watched, system_clock))  # type: ignore[arg-type]
        # Not undone by a ROLLBACK: that empties the cache, and the next one would find it so.
        raw.execute("COMMIT")
        times.append(watched.seconds * 1e6)
        for undo in UNDO:
            raw.execute(undo)
    times = sorted(times[TIMES:])
    return {"p50_us": median(times), "p99_us": times[-TIMES // 100], "plans": watched.plans()}


def _get(chance: random.Random, size: int) -> Callable[[Any], Any]:
    return partial(sessions.get, samples.session_id(chance.randrange(size)))


def _start(chance: random.Random, size: int) -> Callable[[Any], Any]:
    agent = fill.idle_agent(chance.randrange(fill.agents(size)))
    key = RequestKey("StartSession", LOCAL.actor, "", REQUEST_ID, bytes(32))
    new = NewSession(
        new_id("sess_"), agent, samples.PLAYBOOK, samples.DESCRIPTION, LOCAL.actor, key
    )
    return lambda connection: starts.start(connection, [new])


def _list(values: Values, chance: random.Random, size: int) -> Callable[[Any], Any]:
    given = values(chance, size)
    if "status" in given:
        given["status"] = Status(given["status"])
    return partial(session_lists.page, SessionFilter(**given), None, 0, LIMIT + 1)
