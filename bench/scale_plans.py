"""Explains the repository's statements as the service runs them: with plans made once."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench.scale_fill import Size
from infrascout_sessions.storage.repository import (
    agents,
    executions,
    insights,
    outputs,
    recording,
    recording_postgres,
    requests,
    session_lists,
    sessions,
    starts,
    transitions,
)
from infrascout_sessions.storage.statement import Statement

_START = 1_769_860_800 * 1_000_000


class _Explained(NamedTuple):
    statement: Statement
    parameters: Mapping[str, Any]


def _statements(size: Size) -> dict[str, _Explained]:
    middle = size.sessions // 2
    ended, running = size.session_id(middle + 50), size.session_id(size.running(0))
    execution = {"session_id": ended, "sequence": 1}
    page = {"limit": 21, "offset": 0}
    equal = {
        "agent_id": "ag_7",
        "hostname": "host-7",
        "playbook": "playbook-3",
        "status": "completed",
        "started_from": _START,
        "started_before": _START + middle * 1_000_000,
        "after_time": _START + middle * 1_000_000,
        "after_id": ended,
    }
    filters = (
        (),
        ("agent_id",),
        ("hostname",),
        ("playbook",),
        ("status",),
        ("playbook", "status"),
        ("agent_id", "status"),
        ("hostname", "playbook"),
        ("started_from", "started_before"),
        ("status", "started_from", "started_before"),
        ("after_time", "after_id"),
        ("status", "after_time", "after_id"),
    )
    request = {"rpc": "RecordExecution", "actor": "service:local", "request_id": "no such"}
    record: dict[str, list[Any]] = {
        "session_id": [running],
        "execution_id": ["exec_explained"],
        "command": ["true"],
        "capability": ["shell"],
        "step": [""],
        "exit_code": [0],
        "start_time": [1],
        "end_time": [1],
        "actor": ["service:local"],
        "output": [b"x"],
        "output_sha256": [b"x"],
        "error_output": [b"x"],
        "error_output_sha256": [b"x"],
        "rpc": ["RecordExecution"],
        "request_id": ["explained"],
        "digest": [b"x"],
    }
    idle = {"idle_microseconds": 7_200_000_000}
    insight_page = {"session_id": ended, "after_position": 0, "after_revision": 0, "limit": 100}
    return {
        "GetSession": _Explained(sessions._select, {"session_id": ended}),
        "GetSession, several": _Explained(
            sessions.select_several, {"session_ids": [ended, running]}
        ),
        **{
            f"ListSessions by {', '.join(names) or 'nothing'}": _Explained(
                session_lists._select_page(frozenset(names)),
                {**{name: equal[name] for name in names}, **page},
            )
            for names in filters
        },
        "ListSessions, total": _Explained(
            session_lists._select_count(frozenset(("status",))),
            {"status": "completed", "limit": 10_001},
        ),
        "ListExecutions": _Explained(
            executions._select_page(False),
            {"session_id": ended, "after_sequence": 0, "limit": 100},
        ),
        "ListExecutions, failed_only": _Explained(
            executions._select_page(True), {"session_id": ended, "after_sequence": 0, "limit": 100}
        ),
        "ListExecutions, outputs": _Explained(
            outputs._select_heads, {"session_id": ended, "first": 1, "last": 100, "head": 1 << 20}
        ),
        "GetExecution": _Explained(executions._select_one, execution),
        "ReadOutput": _Explained(
            outputs._select_window,
            {**execution, "stream": 1, "offset": 0, "end": 1 << 20, "limit": 2000},
        ),
        "follow, unfinished": _Explained(executions._select_unfinished, {"session_id": ended}),
        "ListInsights": _Explained(insights._select_page(False), insight_page),
        "ListAgents by hostname": _Explained(
            agents._select_page(True), {"hostname_lower": "host-7", "after": "", "limit": 100}
        ),
        "StartSession, busy": _Explained(starts._select_running_of_agent, {"agent_id": "ag_0"}),
        "any retry": _Explained(requests._select, {"session_id": ended, **request}),
        "idle": _Explained(transitions._select_idle, idle),
        "gate": _Explained(recording._gate, {"session_id": running, "added": 1, "failed": 0}),
        "RecordExecution": _Explained(
            recording_postgres._record_one,
            {name: values[0] for name, values in record.items()},
        ),
        "RecordExecution, several": _Explained(recording_postgres._record, record),
    }


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'::bytea"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(_literal, value))}]"
    return str(value)


def _scans(node: Mapping[str, Any]) -> Iterator[str]:
    """What is read, and how."""
    if "Relation Name" in node and "Scan" in node["Node Type"]:
        yield f"{node['Node Type']} {node.get('Index Name', node['Relation Name'])}"
    elif node["Node Type"] == "Bitmap Index Scan":
        yield f"Bitmap Index Scan {node['Index Name']}"
    elif node["Node Type"] in ("Sort", "Incremental Sort"):
        yield node["Node Type"]
    for child in node.get("Plans", ()):
        yield from _scans(child)


async def explain(connection: Any, size: Size, *, in_full: bool) -> None:
    """Print how each statement is run, and how much it reads."""
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute("SET jit = off")
    print("| statement | reads | rows | buffers | ms |\n|---|---|---:|---:|---:|")
    plans = {}
    for name, (statement, parameters) in _statements(size).items():
        sql, bind, _ = statement.compiled("postgresql")
        arguments = ", ".join(map(_literal, bind({"server_time": None, **parameters})))
        await connection.execute(f"PREPARE explained AS {sql}")
        transaction = connection.transaction()
        await transaction.start()
        execute = f"EXECUTE explained{f'({arguments})' if arguments else ''}"
        try:
            await connection.execute("SAVEPOINT again")
            for _ in range(2):  # what is read once is in the cache
                found = await connection.fetchval(
                    f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {execute}"
                )
                await connection.execute("ROLLBACK TO again")
            text = await connection.fetch(f"EXPLAIN {execute}") if in_full else []
        finally:
            await transaction.rollback()
            await connection.execute("DEALLOCATE explained")
        plan = json.loads(found)[0]
        root = plan["Plan"]
        buffers = root["Shared Hit Blocks"] + root["Shared Read Blocks"]
        reads = ", ".join(dict.fromkeys(_scans(root)))
        print(
            f"| {name} | {reads} | {root['Actual Rows']:,.0f} | {buffers:,} "
            f"| {plan['Execution Time']:.2f} |"
        )
        plans[name] = "\n".join(row[0] for row in text)
    for name, text in plans.items():
        if text:
            print(f"\n{name}\n{text}")
