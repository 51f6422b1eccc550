"""Fills a database by set-based SQL: a million sessions through the API would take the day."""

import time

from bench import samples
from bench.databases import Database

PLAYBOOKS = 10
# Among the oldest sessions so many have a playbook, and a status, that no others have.
RARE = 25
RARE_PLAYBOOK = "rare"
SESSIONS_PER_AGENT = 20
DAYS = 30
DAY_MICROSECONDS = 86_400 * 1_000_000
RUNNING, PENDING, COMPLETED = "running", "pending_review", "completed"
INTERRUPTED = "interrupted"

NUMBERS = (
    "WITH RECURSIVE numbers(i) AS"
    " (SELECT CAST({first} AS bigint) UNION ALL SELECT i + 1 FROM numbers WHERE i < {last})"
)


def agent_id(n: int) -> str:
    return f"ag_fill{n:08d}"


def idle_agent(n: int) -> str:
    """One without a running session."""
    return agent_id(n // 2 * 2 + 1)


def playbook(n: int) -> str:
    return f"playbook-{n}"


def agents(sessions: int) -> int:
    return sessions // SESSIONS_PER_AGENT


def sessions(database: Database, name: str, count: int) -> None:
    """`count` sessions of the last thirty days, twenty an agent; of every other agent the last one
    still runs.

    Their ids are `samples.session_id(0)` and so on, their hosts `samples.hostname` of the agent.
    """
    pad, hexadecimal = database.words["pad"], database.words["hex"]
    now = time.time_ns() // 1000
    first, step = now - DAYS * DAY_MICROSECONDS, DAYS * DAY_MICROSECONDS // count
    agent = f"((i * 7919) % {agents(count)})"
    host = f"'host-' || {pad.format(agent)} || '.example.net'"
    own_host = f"'host-' || {pad.format('i')} || '.example.net'"
    # Two unrelated shares of a session's number: of its status, and its playbook.
    share = "(((i * 2654435761) % 4294967296) / 42949673)"
    book = (
        f"CASE WHEN i < {RARE} THEN '{RARE_PLAYBOOK}' ELSE 'playbook-' ||"
        f" (((i * 2246822519) % 4294967296) / {2**32 // PLAYBOOKS + 1}) END"
    )
    status = (
        f"CASE WHEN i / {agents(count)} = {SESSIONS_PER_AGENT - 1} AND {agent} % 2 = 0"
        " THEN 'running'"
        f" WHEN i < {RARE} THEN 'interrupted' WHEN {share} < 50 THEN 'completed'"
        f" WHEN {share} < 80 THEN 'pending_review' ELSE 'failed' END"
    )
    submitted = "status IN ('pending_review', 'completed')"
    ended = "status IN ('completed', 'failed', 'interrupted')"
    database.run(
        name,
        [
            "INSERT INTO agents (agent_id, hostname, hostname_lower, os, capabilities,"
            f" register_time, update_time) {_numbers(agents(count))}"
            f" SELECT 'ag_fill' || {pad.format('i')}, {own_host}, {own_host},"
            f" 'Debian GNU/Linux 13', '[]', {first}, {first} FROM numbers",
            "INSERT INTO sessions (session_id, agent_id, hostname, hostname_lower, playbook,"
            " description, status, status_reason, execution_count, failed_execution_count,"
            " insight_count, summary, start_time, start_actor, last_activity_time, submit_time,"
            f" submit_actor, end_time, end_actor, review_comment) {_numbers(count)},"
            f" made AS (SELECT i, {agent} AS agent, {host} AS host, {status} AS status,"
            f" {book} AS playbook, {first} + i * {step} AS started FROM numbers)"
            f" SELECT 'sess_' || {hexadecimal.format('i')}, 'ag_fill' || {pad.format('agent')},"
            f" host, host, playbook, '{samples.DESCRIPTION}', status, '', 0, 0, 0,"
            f" CASE WHEN {submitted} THEN '{samples.SUMMARY}' ELSE '' END, started,"
            # Nobody is interrupted for being idle while we measure.
            f" 'service:local', CASE WHEN status = 'running' THEN {now} ELSE started END,"
            f" CASE WHEN {submitted} THEN started END,"
            f" CASE WHEN {submitted} THEN 'service:local' END,"
            f" CASE WHEN {ended} THEN started END, CASE WHEN {ended} THEN 'human:reviewer' END,"
            " '' FROM made",
        ],
    )


def executions(database: Database, name: str, counts: list[int]) -> list[str]:
    """A running session for each of `counts`, with so many executions of 1 KiB; their ids."""
    now = time.time_ns() // 1000
    hexadecimal, pad = database.words["hex"], database.words["pad"]
    output = database.words["bytes"].format(samples.OUTPUT.encode().hex())
    sha256 = database.words["bytes"].format(samples.OUTPUT_SHA256)
    ids, statements = [], []
    for count in counts:
        session = samples.session_id(count)
        ids.append(session)
        statements += [
            "INSERT INTO agents (agent_id, hostname, hostname_lower, os, capabilities,"
            f" register_time, update_time) VALUES ('{agent_id(count)}', 'host', 'host', 'Debian',"
            f" '[]', {now}, {now})",
            "INSERT INTO sessions (session_id, agent_id, hostname, hostname_lower, playbook,"
            " description, status, status_reason, execution_count, failed_execution_count,"
            " insight_count, summary, start_time, start_actor, last_activity_time,"
            f" review_comment) VALUES ('{session}', '{agent_id(count)}', 'host', 'host',"
            f" '{samples.PLAYBOOK}', '', 'running', '', {count}, 0, 0, '', {now},"
            f" 'service:local', {now}, '')",
            "INSERT INTO executions (session_id, sequence, execution_id, command, capability,"
            " step, exit_code, start_time, end_time, record_time, finish_record_time, actor,"
            f" output_size, output_sha256) {_numbers(count, 1)} SELECT '{session}', i, 'exec_' ||"
            f" {hexadecimal.format('i')}, '{samples.COMMAND}', '{samples.CAPABILITY}', '', 0,"
            f" {now}, {now}, {now}, {now}, 'service:local', {len(samples.OUTPUT)}, {sha256}"
            " FROM numbers",
            "INSERT INTO outputs (session_id, sequence, stream, byte_offset, data)"
            f" {_numbers(count, 1)} SELECT '{session}', i, 1, 0, {output} FROM numbers",
            "INSERT INTO requests (session_id, rpc, actor, request_id, digest, resource)"
            f" {_numbers(count, 1)} SELECT '{session}', 'RecordExecution', 'service:local',"
            f" 'fill-' || {pad.format('i')}, {sha256}, CAST(i AS text) FROM numbers",
        ]
    database.run(name, statements)
    return ids


def _numbers(count: int, first: int = 0) -> str:
    return NUMBERS.format(first=first, last=first + count - 1)
