"""Fills an SQLite database with many executions, faster than the service takes them."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from infrascout_sessions.storage.schema import metadata

_SECOND = 1_000_000
_START = 1_769_860_800 * _SECOND


def fill(database: Path, executions: int, in_session: int = 100) -> None:
    """Add so many executions to an empty database that is migrated; each prints about 100 bytes.

    They come in the order of time, which is not that of the keys: sessions run side by side.
    """
    sessions = [f"sess_{number:032x}" for number in range(executions // in_session)]
    assert len(sessions) * in_session == executions
    rows: dict[str, Iterator[dict[str, Any]]] = {
        "agents": (_agent(number) for number in range(len(sessions))),
        "sessions": (_session(id_, n, in_session) for n, id_ in enumerate(sessions)),
        "session_recorders": ({"session_id": id_, "actor": "service:local"} for id_ in sessions),
        "executions": (_execution(id_, n) for n in range(1, in_session + 1) for id_ in sessions),
        "outputs": (_output(id_, n) for n in range(1, in_session + 1) for id_ in sessions),
        "requests": (_request(id_, n) for n in range(1, in_session + 1) for id_ in sessions),
        "insights": (_insight(id_) for id_ in sessions),
    }
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        for table, made in rows.items():
            columns = [column.name for column in metadata.tables[table].c]
            connection.executemany(
                f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})",
                ([row.get(column) for column in columns] for row in made),
            )
        connection.execute("COMMIT")


def _agent(number: int) -> dict[str, Any]:
    hostname = f"host-{number}"
    return {
        "agent_id": f"ag_{number}",
        "hostname": hostname,
        "hostname_lower": hostname,
        "os": "Debian 12",
        "capabilities": '["shell"]',
        "register_time": _START,
        "update_time": _START,
    }


def _session(session_id: str, number: int, executions: int) -> dict[str, Any]:
    hostname = f"host-{number}"
    time = _START + number * _SECOND
    texts = dict.fromkeys(("description", "status_reason", "summary", "review_comment"), "")
    return {
        **texts,
        "session_id": session_id,
        "agent_id": f"ag_{number}",
        "hostname": hostname,
        "hostname_lower": hostname,
        "playbook": f"playbook-{number % 10}",
        "status": "running",
        "execution_count": executions,
        "failed_execution_count": 0,
        "insight_count": 1,
        "start_time": time,
        "start_actor": "service:local",
        "last_activity_time": time,
    }


def _printed(session_id: str, sequence: int) -> bytes:
    return b"\xff\x00" + f"{session_id} {sequence} ".encode() * 3


def _execution(session_id: str, sequence: int) -> dict[str, Any]:
    output = _printed(session_id, sequence)
    time = _START + sequence * _SECOND
    return {
        "session_id": session_id,
        "sequence": sequence,
        "execution_id": f"exec_{session_id[21:]}{sequence:016x}",
        "command": f"systemctl status unit-{sequence} --no-pager",
        "capability": "shell",
        "step": "2.1 units",
        "exit_code": 0,
        "start_time": time,
        "end_time": time + 1000,
        "record_time": time + 2000,
        "finish_record_time": time + 2000,
        "actor": "service:local",
        "output_size": len(output),
        "output_sha256": sha256(output).digest(),
    }


def _output(session_id: str, sequence: int) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "sequence": sequence,
        "stream": 1,
        "byte_offset": 0,
        "data": _printed(session_id, sequence),
    }


def _request(session_id: str, sequence: int) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "rpc": "RecordExecution",
        "actor": "service:local",
        "request_id": f"request-{sequence}",
        "digest": sha256(str(sequence).encode()).digest(),
        "resource": str(sequence),
    }


def _insight(session_id: str) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "position": 1,
        "revision": 1,
        "category": "services",
        "key": "failed units",
        "value": "none: naïve “quotes” and 日本",
        "severity": "info",
        "evidence": "",
        "affected_resources": "[]",
        "remediation_steps": "[]",
        "execution_sequences": "[1]",
        "create_time": _START,
        "update_time": _START,
        "actor": "service:local",
    }


async def count(connection: Any, table: str) -> int:
    """How many rows a table has."""
    return int(await connection.scalar(sa.text(f"SELECT count(*) FROM {table}")))
