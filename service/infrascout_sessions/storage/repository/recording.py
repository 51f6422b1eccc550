"""Recording: every execution passes the gate of its session, which gives it its sequence."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from infrascout_sessions.errors import (
    ExecutionFinished,
    InvalidRequest,
    Refusal,
    RequestIdReused,
    Violation,
)
from infrascout_sessions.lifecycle import Status
from infrascout_sessions.models import (
    Actor,
    Execution,
    NewExecution,
    Output,
    OutputStream,
    RequestKey,
)
from infrascout_sessions.storage.repository import (
    executions,
    given_rows,
    outputs,
    recording_postgres,
    requests,
)
from infrascout_sessions.storage.repository.sessions import (
    add_recorders,
    has_status,
    why_not_running,
)
from infrascout_sessions.storage.schema import executions as executions_table
from infrascout_sessions.storage.schema import session_recorders, sessions
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    UniqueViolationError,
    server_time_after,
    statement,
)


def _passed(added: sa.ColumnElement[int], failed: sa.ColumnElement[int]) -> Mapping[str, Any]:
    return {
        "execution_count": sessions.c.execution_count + added,
        "failed_execution_count": sessions.c.failed_execution_count + failed,
        "last_activity_time": server_time_after(sessions.c.last_activity_time),
    }


@statement
def _gate(_dialect: DialectName) -> sa.Executable:
    """Checks that the session runs and hands out the next sequences, in one statement."""
    added, failed = (sa.bindparam(name, type_=sa.Integer) for name in ("added", "failed"))
    return (
        sa.update(sessions)
        .where(sessions.c.session_id == sa.bindparam("session_id"), sa.text("status = 'running'"))
        .values(_passed(added, failed))
        .returning(sessions.c.execution_count, sessions.c.last_activity_time)
    )


@statement
def _gate_for_one(_dialect: DialectName) -> sa.Executable:
    """The gate of one execution, shut to a repeat; tells whether its actor has recorded before."""
    # By parameters and not by the session: what a RETURNING names has no table on SQLite.
    recorder = sa.exists(
        sa.select(sa.literal_column("1"))
        .select_from(session_recorders)
        .where(
            session_recorders.c.session_id == sa.bindparam("session_id"),
            session_recorders.c.actor == sa.bindparam("actor"),
        )
    )
    return (
        sa.update(sessions)
        .where(
            sessions.c.session_id == sa.bindparam("session_id"),
            sa.text("status = 'running'"),
            requests.NOT_MADE_BEFORE,
        )
        .values(_passed(sa.literal_column("1"), sa.bindparam("failed", type_=sa.Integer)))
        .returning(sessions.c.execution_count, sessions.c.last_activity_time, recorder)
    )


_RUNNING_GIVEN = (sessions.c.session_id == given_rows.value(0), has_status(Status.RUNNING))


@statement
def _gates(_dialect: DialectName) -> sa.Executable:
    """The gates of several sessions."""
    added, failed = given_rows.value(1, sa.Integer), given_rows.value(2, sa.Integer)
    return sa.update(sessions).where(*_RUNNING_GIVEN).values(_passed(added, failed))


@statement
def _select_passed(_dialect: DialectName) -> sa.Executable:
    return given_rows.gathered(
        sessions.c.session_id, sessions.c.execution_count, sessions.c.last_activity_time
    ).where(*_RUNNING_GIVEN)


def _pass_gate(session_id: str, added: int, failed: int, connection: Connection) -> tuple[int, int]:
    """The last sequence handed out, and the time.

    Raises `SessionNotFound`, `SessionNotRunning`.
    """
    passed = _pass_gates([(session_id, added, failed)], connection)
    if session_id not in passed:
        raise why_not_running(session_id, connection)
    return passed[session_id]


def _pass_gates(
    counts: Sequence[tuple[str, int, int]], connection: Connection
) -> Mapping[str, tuple[int, int]]:
    """Hand out sequences in sessions: of each its id, how many, and how many of them failed.

    Gives the last sequence and the time of each session that runs.
    """
    if len(counts) > 1:
        given_rows.run(_gates, counts, connection)
        # Those whose gate was shut do not run now either: nobody else writes meanwhile.
        found = given_rows.select(_select_passed, counts, connection)
        passed = {session_id: (last, time) for session_id, last, time in found}
    else:
        [(session_id, added, failed)] = counts
        row = connection.one(_gate, session_id=session_id, added=added, failed=failed)
        passed = {} if row is None else {session_id: (row[0], row[1])}
    connection.changed.update(passed)
    return passed


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


def _store(
    made: Sequence[Execution], asked: Iterable[NewExecution], connection: Connection
) -> None:
    """Store executions and who recorded them; raises the database's own error for a repeat."""
    _store_executions(made, asked, connection)
    add_recorders(connection, {(execution.session_id, execution.actor) for execution in made})


def _store_executions(
    made: Sequence[Execution], asked: Iterable[NewExecution], connection: Connection
) -> None:
    connection.insert(_insert, [_row(execution) for execution in made])
    outputs.store(
        connection,
        [
            (execution.session_id, execution.sequence, stream, 0, output.head)
            for execution in made
            for stream, output in (
                (OutputStream.STDOUT, execution.output),
                (OutputStream.STDERR, execution.error_output),
            )
            if output is not None and output.head
        ],
    )
    requests.remember_all(
        connection,
        [
            (new.request, str(execution.sequence))
            for new, execution in zip(asked, made, strict=True)
            if new.request is not None
        ],
    )


def _execution(sequence: int, time: int, finish_time: int | None, new: NewExecution) -> Execution:
    return Execution(
        new.session_id,
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


def _repeated(new: NewExecution, connection: Connection) -> Execution | None:
    """What the same request has made before, if it has."""
    earlier = requests.earlier(connection, new.request)
    if earlier is None:
        return None
    return executions.get(new.session_id, int(earlier), executions.WHOLE, connection)


def record(connection: Connection, items: Sequence[NewExecution]) -> Sequence[Execution | Refusal]:
    """Record commands that have run, of any sessions, those of a session in this order.

    Gives each its execution or why it is refused: `SessionNotFound`, `SessionNotRunning`,
    `RequestIdReused`. One by itself may be a repeat and gets what was made before; one among
    others makes this raise the database's own error, and then they are to be run one by one.
    """
    return _RECORD[connection.dialect](connection, items)


def _record_by_gate(
    connection: Connection, items: Sequence[NewExecution]
) -> Sequence[Execution | Refusal]:
    """On SQLite, which takes no INSERT in a WITH: a gate a session, then the rows of all."""
    if len(items) == 1:
        return [_record_one(items[0], connection)]
    outcomes: dict[int, Execution | Refusal] = {}
    fresh: list[NewExecution] = []
    made: list[Execution] = []
    by_session: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        by_session.setdefault(item.session_id, []).append(index)
    counts = [
        (session_id, len(indexes), sum(items[index].exit_code != 0 for index in indexes))
        for session_id, indexes in by_session.items()
    ]
    passed = _pass_gates(counts, connection)
    for session_id, indexes in by_session.items():
        if session_id not in passed:
            shut = why_not_running(session_id, connection)
            for index in indexes:
                outcomes[index] = _repeated_or(shut, items[index], connection)
            continue
        last, time = passed[session_id]
        for sequence, index in enumerate(indexes, last - len(indexes) + 1):
            execution = _execution(sequence, time, time, items[index])
            outcomes[index] = execution
            fresh.append(items[index])
            made.append(execution)
    if made:
        _store(made, fresh, connection)
    return [outcomes[index] for index in range(len(items))]


def _record_one(item: NewExecution, connection: Connection) -> Execution | Refusal:
    """One by itself in as few statements as it takes: each costs its caller as much as a row."""
    row = connection.one(
        _gate_for_one,
        session_id=item.session_id,
        failed=int(item.exit_code != 0),
        actor=str(item.actor),
        **requests.of(item.request),
    )
    if row is None:
        try:
            return _repeated(item, connection) or why_not_running(item.session_id, connection)
        except RequestIdReused as refusal:
            return refusal
    sequence, time, is_recorder = row
    connection.changed.add(item.session_id)
    execution = _execution(sequence, time, time, item)
    _store_executions([execution], [item], connection)
    if not is_recorder:
        add_recorders(connection, [(item.session_id, item.actor)])
    return execution


def _repeated_or(
    refusal: Refusal, item: NewExecution, connection: Connection
) -> Execution | Refusal:
    """What a repeat made before its session was closed, or why it is refused."""
    try:
        return _repeated(item, connection) or refusal
    except RequestIdReused as reused:
        return reused


def _known(
    items: Sequence[NewExecution], indexes: Sequence[int], connection: Connection
) -> dict[int, Execution | Refusal]:
    """What becomes of those that repeat earlier requests, by their indexes."""
    found = recording_postgres.known(connection, [items[index] for index in indexes])
    outcomes: dict[int, Execution | Refusal] = {}
    for place, known in found.items():
        item = items[indexes[place]]
        # What the same message says is what is on record: it does not change.
        made = _execution(known.sequence, known.time, known.time, item)
        outcomes[indexes[place]] = _as_repeat(
            item, known.digest, made._replace(execution_id=known.execution_id)
        )
    return outcomes


def _as_repeat(item: NewExecution, digest: bytes, outcome: Execution | Refusal) -> Any:
    """What becomes of a request that another one with this digest came before."""
    if item.request is not None and item.request.digest != digest:
        return RequestIdReused(item.request.request_id)
    return outcome


def _record_in_one_statement(
    connection: Connection, items: Sequence[NewExecution]
) -> Sequence[Execution | Refusal]:
    """On PostgreSQL: one statement, or three if some are repeats."""
    outcomes: dict[int, Execution | Refusal] = {}
    fresh: Sequence[int] = range(len(items))
    # Those that repeat another one here, which comes first.
    first_of: dict[int, int] = {}
    try:
        placed = recording_postgres.place(connection, items)
    except UniqueViolationError:
        outcomes = _known(items, fresh, connection)
        firsts: dict[Any, int] = {}
        for index in fresh:
            request = items[index].request
            if request is not None and index not in outcomes:
                first = firsts.setdefault(request._replace(digest=b""), index)
                if first != index:
                    first_of[index] = first
        fresh = [index for index in fresh if index not in outcomes and index not in first_of]
        placed = (
            recording_postgres.place(connection, [items[index] for index in fresh]) if fresh else {}
        )
    for place, (sequence, time) in placed.items():
        item = items[fresh[place]]
        outcomes[fresh[place]] = _execution(sequence, time, time, item)
        connection.changed.add(item.session_id)
    shut = [index for index in fresh if index not in outcomes]
    if shut:
        outcomes |= _known(items, shut, connection)
        why: dict[str, Refusal] = {}
        for index in shut:
            session_id = items[index].session_id
            if index not in outcomes:
                if session_id not in why:
                    why[session_id] = why_not_running(session_id, connection)
                outcomes[index] = why[session_id]
    for index, first in first_of.items():
        request = items[first].request
        assert request is not None  # noqa: S101 - it is what they have in common
        outcomes[index] = _as_repeat(items[index], request.digest, outcomes[first])
    return [outcomes[index] for index in range(len(items))]


_RECORD: Mapping[
    DialectName,
    Callable[[Connection, Sequence[NewExecution]], Sequence[Execution | Refusal]],
] = {"sqlite": _record_by_gate, "postgresql": _record_in_one_statement}


def begin(new: NewExecution, connection: Connection) -> Execution:
    """Put a command on record before it runs.

    Raises `SessionNotFound`, `SessionNotRunning`, `RequestIdReused`.
    """
    repeated = _repeated(new, connection)
    if repeated is not None:
        return repeated
    sequence, time = _pass_gate(new.session_id, 1, 0, connection)
    begun = _execution(sequence, time, None, new)
    _store([begun], [new], connection)
    return begun


# How much of an output may be hashed while others wait for the session: what has been added since
# the rest was. Without it, who prints on and on would never let a finish through.
_HASHED_LAST_BYTES = 1024 * 1024


class OutputsChangedError(Exception):
    """The outputs have grown by too much since their digests were taken: take in the rest."""


class End(NamedTuple):
    """How a command has ended, and what has been hashed of its outputs."""

    exit_code: int | None
    end_time: int
    digests: Mapping[OutputStream, outputs.Digest]


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
            # On PostgreSQL the same request may have come in between.
            requests.earlier(connection, request)
            raise ExecutionFinished(session_id, sequence)
    elif end_time < execution.start_time:
        raise InvalidRequest((Violation("end_time", "is before the execution's start_time"),))
    return execution


def _digest(output: Output | None, digest: outputs.Digest, connection: Connection) -> bytes | None:
    """The digest of an output that nobody adds to now; raises `OutputsChangedError`."""
    if output is None:
        return None
    if digest.lacks(output.size_bytes) > _HASHED_LAST_BYTES:
        raise OutputsChangedError
    return digest.whole(output.size_bytes, connection)


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
            # Read again: on PostgreSQL only the gate has made others wait.
            execution = executions.get(session_id, sequence, 0, connection)
            output, error_output = execution.output, execution.error_output
            row = connection.one(
                _finish,
                of_session=session_id,
                of_sequence=sequence,
                expected_size=-1 if output is None else output.size_bytes,
                expected_error_size=-1 if error_output is None else error_output.size_bytes,
                exit_code=end.exit_code,
                end_time=end.end_time,
                finish_record_time=time,
                output_sha256=_digest(output, end.digests[OutputStream.STDOUT], connection),
                error_output_sha256=_digest(
                    error_output, end.digests[OutputStream.STDERR], connection
                ),
            )
            if row is None:
                raise OutputsChangedError
            add_recorders(connection, {(session_id, actor)})
        requests.remember(connection, request, str(sequence))
    return executions.get(session_id, sequence, executions.WHOLE, connection)
