"""Executions: recorded through their session's gate, listed in order."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from infrascout_sessions.errors import ExecutionNotFound, RequestIdReused
from infrascout_sessions.models import (
    Execution,
    NewExecution,
    Output,
    actor_from_text,
)
from infrascout_sessions.storage.repository import requests
from infrascout_sessions.storage.repository.sessions import require, why_not_running
from infrascout_sessions.storage.schema import (
    FAILED,
    executions,
    outputs,
    session_recorders,
    sessions,
)
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    Row,
    Statement,
    insert_for,
    server_time_after,
    statement,
)

STDOUT = 1
STDERR = 2

_COLUMNS = (
    *(executions.c[name] for name in Execution._fields[:12]),
    executions.c.output_size,
    executions.c.output_sha256,
    executions.c.error_output_size,
    executions.c.error_output_sha256,
)


# Recording.


@statement
def _gate(_dialect: DialectName) -> sa.Executable:
    """Checks that the session runs and hands out the next sequences, in one statement."""
    return (
        sa.update(sessions)
        .where(sessions.c.session_id == sa.bindparam("session_id"), sa.text("status = 'running'"))
        .values(
            execution_count=sessions.c.execution_count + sa.bindparam("count", type_=sa.Integer),
            failed_execution_count=sessions.c.failed_execution_count
            + sa.bindparam("failed", type_=sa.Integer),
            last_activity_time=server_time_after(sessions.c.last_activity_time),
        )
        .returning(sessions.c.execution_count, sessions.c.last_activity_time)
    )


@statement
def _insert(_dialect: DialectName) -> sa.Executable:
    return sa.insert(executions)


@statement
def _insert_output(_dialect: DialectName) -> sa.Executable:
    return sa.insert(outputs)


@statement
def _insert_recorder(dialect: DialectName) -> sa.Executable:
    return insert_for[dialect](session_recorders).on_conflict_do_nothing()  # type: ignore[no-any-return]


def add_recorder(connection: Connection, session_id: str, actors: set[str]) -> None:
    """Keep that these have recorded in the session, for its review."""
    connection.many(
        _insert_recorder, [{"session_id": session_id, "actor": actor} for actor in actors]
    )


def _row(execution: Execution) -> dict[str, Any]:
    row = execution._asdict()
    row["actor"] = str(execution.actor)
    for name in ("output", "error_output"):
        output = row[name]
        row[f"{name}_size"] = None if output is None else output.size_bytes
        row[f"{name}_sha256"] = None if output is None else output.sha256
    return row


def _chunks(execution: Execution) -> Iterator[dict[str, Any]]:
    for stream, output in ((STDOUT, execution.output), (STDERR, execution.error_output)):
        if output is not None and output.head:
            yield {
                "session_id": execution.session_id,
                "sequence": execution.sequence,
                "stream": stream,
                "byte_offset": 0,
                "data": output.head,
            }


def _execution(session_id: str, sequence: int, time: int, new: NewExecution) -> Execution:
    return Execution(
        session_id=session_id,
        sequence=sequence,
        execution_id=new.execution_id,
        command=new.command,
        capability=new.capability,
        step=new.step,
        exit_code=new.exit_code,
        start_time=new.start_time,
        end_time=new.end_time,
        record_time=time,
        finish_record_time=time,
        actor=new.actor,
        output=new.output,
        error_output=new.error_output,
    )


def record(
    connection: Connection, session_id: str, items: Sequence[NewExecution]
) -> Sequence[Execution | Exception]:
    """Record commands that have run, in this order, and give each its execution or its refusal.

    A refusal is `SessionNotFound`, `SessionNotRunning` or `RequestIdReused`. An item whose request
    was seen before gets the execution that it made then.
    """
    outcomes: list[Execution | Exception | None] = [None] * len(items)
    fresh: list[int] = []
    repeats: dict[int, int] = {}
    in_this_call: dict[tuple[str, str], int] = {}
    for index, item in enumerate(items):
        request = item.request
        if request is not None:
            try:
                earlier = requests.earlier(connection, request)
            except RequestIdReused as refusal:
                outcomes[index] = refusal
                continue
            if earlier is not None:
                outcomes[index] = get(session_id, int(earlier), _WHOLE, connection)
                continue
            known_here = in_this_call.setdefault((str(request.actor), request.request_id), index)
            if known_here != index:
                repeats[index] = known_here
                continue
        fresh.append(index)
    if fresh:
        gate = connection.one(
            _gate,
            session_id=session_id,
            count=len(fresh),
            failed=sum(items[index].failed for index in fresh),
        )
        if gate is None:
            refused = why_not_running(session_id, connection)
            for index in fresh:
                outcomes[index] = refused
        else:
            last, time = gate
            made = [
                _execution(session_id, sequence, time, items[index])
                for sequence, index in enumerate(fresh, last - len(fresh) + 1)
            ]
            connection.many(_insert, map(_row, made))
            chunks = [chunk for execution in made for chunk in _chunks(execution)]
            if chunks:
                connection.many(_insert_output, chunks)
            requests.remember_all(
                connection,
                [
                    (request, str(execution.sequence))
                    for index, execution in zip(fresh, made, strict=True)
                    if (request := items[index].request) is not None
                ],
            )
            add_recorder(connection, session_id, {str(execution.actor) for execution in made})
            connection.changed.add(session_id)
            for index, execution in zip(fresh, made, strict=True):
                outcomes[index] = execution
    for index, first in repeats.items():
        outcomes[index] = _repeated(items[index], items[first], outcomes[first])
    return [outcome for outcome in outcomes if outcome is not None]


def _repeated(
    item: NewExecution, first: NewExecution, outcome: Execution | Exception | None
) -> Execution | Exception | None:
    """The outcome of a request whose id stands earlier in the same call."""
    assert item.request is not None and first.request is not None  # noqa: S101, PT018
    # A refused call is not remembered; what refused it refuses this one, too.
    if not isinstance(outcome, Exception) and item.request.digest != first.request.digest:
        return RequestIdReused(item.request.request_id)
    return outcome


# Reading.

_WHOLE = 1024 * 1024


@cache
def _select_page(failed_only: bool) -> Statement:
    def build(_dialect: DialectName) -> sa.Executable:
        page = (
            sa.select(*_COLUMNS)
            .where(
                executions.c.session_id == sa.bindparam("session_id"),
                executions.c.sequence > sa.bindparam("after_sequence"),
            )
            .order_by(executions.c.sequence)
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )
        return page.where(sa.text(FAILED)) if failed_only else page

    return Statement(build)


@statement
def _select_one(_dialect: DialectName) -> sa.Executable:
    return sa.select(*_COLUMNS).where(
        executions.c.session_id == sa.bindparam("session_id"),
        executions.c.sequence == sa.bindparam("sequence"),
    )


@statement
def _select_heads(_dialect: DialectName) -> sa.Executable:
    """The beginnings of the outputs of a range of executions, cut to `head` bytes each."""
    head = sa.bindparam("head", type_=sa.BigInteger)
    return (
        sa.select(
            outputs.c.sequence,
            outputs.c.stream,
            sa.func.substr(outputs.c.data, 1, head - outputs.c.byte_offset),
        )
        .where(
            outputs.c.session_id == sa.bindparam("session_id"),
            outputs.c.sequence.between(sa.bindparam("first"), sa.bindparam("last")),
            outputs.c.byte_offset < head,
        )
        .order_by(outputs.c.sequence, outputs.c.stream, outputs.c.byte_offset)
    )


def _output(head: bytes, size_bytes: int | None, sha256: bytes | None) -> Output | None:
    return None if size_bytes is None else Output(head[:size_bytes], size_bytes, sha256)


def _from_row(row: Row, head: bytes, error_head: bytes) -> Execution:
    return Execution._make(
        (
            *row[:11],
            actor_from_text(row[11]),
            _output(head, row[12], row[13]),
            _output(error_head, row[14], row[15]),
        )
    )


def _heads(
    session_id: str, first: int, last: int, head_bytes: int, connection: Connection
) -> dict[tuple[int, int], bytes]:
    heads: dict[tuple[int, int], bytes] = {}
    if head_bytes == 0:
        return heads
    for sequence, stream, data in connection.all(
        _select_heads, session_id=session_id, first=first, last=last, head=head_bytes
    ):
        known = heads.get((sequence, stream))
        heads[sequence, stream] = data if known is None else known + data
    return heads


def get(session_id: str, sequence: int, head_bytes: int, connection: Connection) -> Execution:
    """One execution, with the first `head_bytes` of each output.

    Raises `SessionNotFound`, `ExecutionNotFound`.
    """
    row = connection.one(_select_one, session_id=session_id, sequence=sequence)
    if row is None:
        require(session_id, connection)
        raise ExecutionNotFound(session_id, sequence)
    heads = _heads(session_id, sequence, sequence, head_bytes, connection)
    return _from_row(row, heads.get((sequence, STDOUT), b""), heads.get((sequence, STDERR), b""))


def _size(row: Row, head_bytes: int) -> int:
    """The most bytes that the execution can take in a message."""
    _, _, _, command, capability, step, *_, actor, output_size, _, error_output_size, _ = row
    texts = sum(len(text.encode()) for text in (command, capability, step, actor))
    # Ids, numbers, times, digests and the framing of all of it are 362 bytes at most.
    return 400 + texts + min(output_size or 0, head_bytes) + min(error_output_size or 0, head_bytes)


def page(
    session_id: str,
    after_sequence: int,
    limit: int,
    page_bytes: int,
    head_bytes: int,
    failed_only: bool,
    connection: Connection,
) -> tuple[list[Execution], bool]:
    """The next executions of a session, at most `limit` and `page_bytes` unless one has more.

    Also says whether there may be more. Raises `SessionNotFound` if there are none and no session.
    """
    rows = connection.all(
        _select_page(failed_only),
        session_id=session_id,
        after_sequence=after_sequence,
        limit=limit,
    )
    if not rows:
        require(session_id, connection)
        return [], False
    taken, total = 0, 0
    for row in rows:
        total += _size(row, head_bytes)
        if taken and total > page_bytes:
            break
        taken += 1
    heads = _heads(session_id, rows[0][1], rows[taken - 1][1], head_bytes, connection)
    return [
        _from_row(row, heads.get((row[1], STDOUT), b""), heads.get((row[1], STDERR), b""))
        for row in rows[:taken]
    ], taken < len(rows) or len(rows) == limit
