"""Recording: every execution passes the gate of its session, which gives it its sequence."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from infrascout_sessions.errors import ExecutionFinished, InvalidRequest, Violation
from infrascout_sessions.models import (
    Actor,
    Execution,
    NewExecution,
    Output,
    OutputStream,
    RequestKey,
)
from infrascout_sessions.storage.repository import executions, outputs, requests
from infrascout_sessions.storage.repository.sessions import add_recorders, why_not_running
from infrascout_sessions.storage.schema import executions as executions_table
from infrascout_sessions.storage.schema import sessions
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    server_time_after,
    statement,
)


@statement
def _gate(_dialect: DialectName) -> sa.Executable:
    """Checks that the session runs and hands out the next sequences, in one statement."""
    return (
        sa.update(sessions)
        .where(sessions.c.session_id == sa.bindparam("session_id"), sa.text("status = 'running'"))
        .values(
            execution_count=sessions.c.execution_count + sa.bindparam("added", type_=sa.Integer),
            failed_execution_count=sessions.c.failed_execution_count
            + sa.bindparam("failed", type_=sa.Integer),
            last_activity_time=server_time_after(sessions.c.last_activity_time),
        )
        .returning(sessions.c.execution_count, sessions.c.last_activity_time)
    )


def _pass_gate(session_id: str, added: int, failed: int, connection: Connection) -> tuple[int, int]:
    """The last sequence handed out, and the time.

    Raises `SessionNotFound`, `SessionNotRunning`.
    """
    row = connection.one(_gate, session_id=session_id, added=added, failed=failed)
    if row is None:
        raise why_not_running(session_id, connection)
    connection.changed.add(session_id)
    return row[0], row[1]


@statement
def _insert(_dialect: DialectName) -> sa.Executable:
    return sa.insert(executions_table)


def _row(execution: Execution) -> tuple[Any, ...]:
    output, error_output = execution.output, execution.error_output
    return (
        *execution[:11],
        str(execution.actor),
        None if output is None else output.size_bytes,
        None if output is None else output.sha256,
        None if error_output is None else error_output.size_bytes,
        None if error_output is None else error_output.sha256,
    )


def _chunks(made: Iterable[Execution]) -> Iterator[tuple[str, int, OutputStream, int, bytes]]:
    for execution in made:
        for stream, output in (
            (OutputStream.STDOUT, execution.output),
            (OutputStream.STDERR, execution.error_output),
        ):
            if output is not None and output.head:
                yield execution.session_id, execution.sequence, stream, 0, output.head


def _store(
    session_id: str,
    made: Sequence[Execution],
    asked: Iterable[RequestKey | None],
    connection: Connection,
) -> None:
    connection.insert(_insert, [_row(execution) for execution in made])
    outputs.store(connection, _chunks(made))
    requests.remember_all(
        connection,
        (
            (request, str(execution.sequence))
            for request, execution in zip(asked, made, strict=True)
        ),
    )
    add_recorders(connection, session_id, {str(execution.actor) for execution in made})


def _execution(
    session_id: str, sequence: int, time: int, finish_time: int | None, new: NewExecution
) -> Execution:
    return Execution(
        session_id,
        sequence,
        new.execution_id,
        new.command,
        new.capability,
        new.step,
        new.exit_code,
        new.start_time,
        new.end_time,
        time,
        finish_time,
        new.actor,
        new.output,
        new.error_output,
    )


def record(
    connection: Connection, session_id: str, items: Sequence[NewExecution]
) -> Sequence[Execution]:
    """Record commands that have run, in this order.

    An item by itself may be a repeat, and gets the execution that was made then. Several that
    cannot all be recorded anew raise: run them one by one. Raises `SessionNotFound`,
    `SessionNotRunning`, `RequestIdReused`.
    """
    if len(items) == 1:
        earlier = requests.earlier(connection, items[0].request)
        if earlier is not None:
            return [executions.get(session_id, int(earlier), executions.WHOLE, connection)]
    last, time = _pass_gate(
        session_id, len(items), sum(item.exit_code != 0 for item in items), connection
    )
    made = [
        _execution(session_id, sequence, time, time, item)
        for sequence, item in enumerate(items, last - len(items) + 1)
    ]
    _store(session_id, made, (item.request for item in items), connection)
    return made


def begin(session_id: str, new: NewExecution, connection: Connection) -> Execution:
    """Put a command on record before it runs.

    Raises `SessionNotFound`, `SessionNotRunning`, `RequestIdReused`.
    """
    earlier = requests.earlier(connection, new.request)
    if earlier is not None:
        return executions.get(session_id, int(earlier), executions.WHOLE, connection)
    sequence, time = _pass_gate(session_id, 1, 0, connection)
    begun = _execution(session_id, sequence, time, None, new)
    _store(session_id, [begun], [new.request], connection)
    return begun


class OutputsChangedError(Exception):
    """The outputs have grown since their digests were taken: take them again."""


class End(NamedTuple):
    """How a command has ended, and its outputs as they then were."""

    exit_code: int | None
    end_time: int
    output: Output | None
    error_output: Output | None


@statement
def _finish(_dialect: DialectName) -> sa.Executable:
    columns = executions_table.c
    return (
        sa.update(executions_table)
        .where(
            columns.session_id == sa.bindparam("of_session"),
            columns.sequence == sa.bindparam("of_sequence"),
            columns.finish_record_time.is_(None),
            sa.func.coalesce(columns.output_size, sa.literal_column("-1"))
            == sa.bindparam("expected_size", type_=sa.BigInteger),
            sa.func.coalesce(columns.error_output_size, sa.literal_column("-1"))
            == sa.bindparam("expected_error_size", type_=sa.BigInteger),
        )
        .values(
            exit_code=sa.bindparam("exit_code"),
            end_time=sa.bindparam("end_time"),
            finish_record_time=sa.bindparam("finish_record_time"),
            output_sha256=sa.bindparam("output_sha256"),
            error_output_sha256=sa.bindparam("error_output_sha256"),
        )
        .returning(columns.sequence)
    )


def to_finish(
    session_id: str,
    sequence: int,
    exit_code: int | None,
    end_time: int,
    request: RequestKey | None,
    connection: Connection,
) -> Execution:
    """The execution, without its outputs' content, if it may end so or has ended so.

    Raises `RequestIdReused`, `SessionNotFound`, `ExecutionNotFound`, `ExecutionFinished` if it has
    ended otherwise, `InvalidRequest` if it would end before it started.
    """
    requests.earlier(connection, request)
    execution = executions.get(session_id, sequence, 0, connection)
    if execution.finish_record_time is not None:
        if (execution.exit_code, execution.end_time) != (exit_code, end_time):
            raise ExecutionFinished(session_id, sequence)
    elif end_time < execution.start_time:
        raise InvalidRequest((Violation("end_time", "is before the execution's start_time"),))
    return execution


def finish(
    session_id: str,
    sequence: int,
    end: End,
    actor: Actor,
    request: RequestKey | None,
    connection: Connection,
) -> Execution:
    """Record how an execution that was begun has ended; a repeat changes nothing.

    Raises as `to_finish` does, and `SessionNotRunning`, `OutputsChangedError`.
    """
    if requests.earlier(connection, request) is None:
        execution = to_finish(session_id, sequence, end.exit_code, end.end_time, None, connection)
        if execution.finish_record_time is None:
            _, time = _pass_gate(session_id, 0, int(end.exit_code != 0), connection)
            row = connection.one(
                _finish,
                of_session=session_id,
                of_sequence=sequence,
                expected_size=-1 if end.output is None else end.output.size_bytes,
                expected_error_size=-1 if end.error_output is None else end.error_output.size_bytes,
                exit_code=end.exit_code,
                end_time=end.end_time,
                finish_record_time=time,
                output_sha256=end.output and end.output.sha256,
                error_output_sha256=end.error_output and end.error_output.sha256,
            )
            if row is None:
                raise OutputsChangedError
            add_recorders(connection, session_id, [str(actor)])
        requests.remember(connection, request, str(sequence))
    return executions.get(session_id, sequence, executions.WHOLE, connection)
