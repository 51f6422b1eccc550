"""Fills PostgreSQL with sessions and executions, as fast as SQL makes them up."""

from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

_START_SECONDS = 1_769_860_800
_RUNNING_OF = 100  # one session of so many runs


@dataclass(frozen=True)
class Size:
    """How much there is, and how it is named."""

    executions: int
    sessions: int
    playbooks: int = 20

    @property
    def in_session(self) -> int:
        return self.executions // self.sessions

    @property
    def agents(self) -> int:
        """Each has had five sessions; at most one of them runs."""
        return self.sessions // 5

    @property
    def running_sessions(self) -> int:
        return self.sessions // _RUNNING_OF

    def session_id(self, number: int) -> str:
        return f"sess_{number:032x}"

    def running(self, number: int) -> int:
        """The number of a session that runs."""
        return self.sessions - self.running_sessions + number

    def start_time(self, number: int) -> Timestamp:
        """When a session started."""
        return Timestamp(seconds=_START_SECONDS + number)


_SESSION_ID = "'sess_' || lpad(to_hex(s), 32, '0')"

_FILL = {
    "agents": """
        INSERT INTO agents SELECT 'ag_' || a, 'host-' || a, 'host-' || a, 'Debian 12', '["shell"]',
          {start}, {start} FROM generate_series(0, {agents} - 1) a""",
    # The newest run: they are of different agents.
    "sessions": """
        INSERT INTO sessions
          (session_id, agent_id, hostname, hostname_lower, playbook, description, status,
           status_reason, execution_count, failed_execution_count, insight_count, summary,
           start_time, start_actor, last_activity_time, submit_time, submit_actor, end_time,
           end_actor, review_comment)
        SELECT {session_id}, 'ag_' || s % {agents}, 'host-' || s % {agents},
          'host-' || s % {agents}, 'playbook-' || s * 7919 % {playbooks}, 'A scheduled assessment',
          status, '', {in_session}, {in_session} / 20, 0, '', {start} + s * 1000000,
          'service:local', {start} + s * 1000000,
          CASE WHEN status IN ('pending_review', 'completed') THEN {start} END,
          CASE WHEN status IN ('pending_review', 'completed') THEN 'service:local' END,
          CASE WHEN status IN ('completed', 'failed') THEN {start} END,
          CASE WHEN status IN ('completed', 'failed') THEN 'human:ada' END, ''
        FROM (SELECT s, CASE
            WHEN s >= {sessions} - {running_sessions} THEN 'running'
            WHEN s % 100 < 3 THEN 'pending_review'
            WHEN s % 100 < 5 THEN 'failed' ELSE 'completed' END AS status
          FROM generate_series(0::bigint, {sessions} - 1) s) made""",
    "session_recorders": """
        INSERT INTO session_recorders SELECT {session_id}, 'service:local'
        FROM generate_series(0::bigint, {sessions} - 1) s""",
    "insights": """
        INSERT INTO insights SELECT {session_id}, 1 + i / 2, 1 + i % 2,
          'open_ports', 'tcp/' || i / 2, 'ssh listens everywhere', 'info', '',
          '[]', '[]', '[1]', {start}, {start}, 'service:local'
        FROM generate_series(0::bigint, {sessions} - 1) s, generate_series(0, 3) i""",
    "executions": """
        INSERT INTO executions SELECT {session_id}, n,
          'exec_' || lpad(to_hex(s * {in_session} + n), 32, '0'),
          'systemctl status unit-' || n || ' --no-pager', 'shell', '2.1 units',
          CASE WHEN n % 20 = 0 THEN 1 ELSE 0 END,
          {start} + n * 1000000, {start} + n * 1000000 + 500,
          {start} + n * 1000000, {start} + n * 1000000, 'service:local',
          100, decode(repeat(lpad(to_hex(n), 8, '0'), 8), 'hex'), NULL, NULL
        FROM generate_series({first}::bigint, {last}) s,
          generate_series(1::bigint, {in_session}) n""",
    "outputs": """
        INSERT INTO outputs SELECT {session_id}, n, 1, 0,
          decode(md5(s || ' ' || n) || repeat(md5(n || ''), 5) || '00000000', 'hex')
        FROM generate_series({first}::bigint, {last}) s,
          generate_series(1::bigint, {in_session}) n""",
    "requests": """
        INSERT INTO requests SELECT {session_id}, 'RecordExecution', 'service:local',
          md5(s || ' ' || n), decode(repeat(lpad(to_hex(n), 8, '0'), 8), 'hex'), n::text
        FROM generate_series({first}::bigint, {last}) s,
          generate_series(1::bigint, {in_session}) n""",
}


async def fill(connection: Any, size: Size) -> None:
    """Fill an empty database and bring its statistics up to date."""
    # What refers to what is right by construction; checking it takes longer than all the rest.
    await connection.execute("SET session_replication_role = replica")
    await connection.execute("SET synchronous_commit = off")
    values = {
        "session_id": _SESSION_ID,
        "start": _START_SECONDS * 1_000_000,
        "agents": size.agents,
        "sessions": size.sessions,
        "running_sessions": size.running_sessions,
        "playbooks": size.playbooks,
        "in_session": size.in_session,
    }
    for table, sql in _FILL.items():
        # Not all in one transaction: it would be hours of work for nothing, should it break.
        step = max(1, 1_000_000 // size.in_session) if "{first}" in sql else size.sessions
        for first in range(0, size.sessions, step):
            last = min(first + step, size.sessions) - 1
            await connection.execute(sql.format(**values, first=first, last=last))
        print(f"filled {table}", flush=True)
    await connection.execute("RESET session_replication_role")
    await connection.execute("RESET synchronous_commit")
    await connection.execute("VACUUM (ANALYZE)")
    await connection.execute("CHECKPOINT")
