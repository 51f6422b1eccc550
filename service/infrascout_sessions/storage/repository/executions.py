"""Executions: read one by one, and listed in order."""

from functools import cache

import sqlalchemy as sa

from infrascout_sessions.errors import ExecutionNotFound
from infrascout_sessions.models import Execution, Output, OutputStream, actor_from_text
from infrascout_sessions.storage.repository import outputs
from infrascout_sessions.storage.repository.sessions import require
from infrascout_sessions.storage.schema import FAILED, UNFINISHED, executions
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    Row,
    Statement,
    statement,
)

_COLUMNS = (
    *(executions.c[name] for name in Execution._fields[:12]),
    executions.c.output_size,
    executions.c.output_sha256,
    executions.c.error_output_size,
    executions.c.error_output_sha256,
)


WHOLE = 1024 * 1024
"""As much of an output as a message carries."""


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


def get(session_id: str, sequence: int, head_bytes: int, connection: Connection) -> Execution:
    """One execution, with the first `head_bytes` of each output.

    Raises `SessionNotFound`, `ExecutionNotFound`.
    """
    row = connection.one(_select_one, session_id=session_id, sequence=sequence)
    if row is None:
        require(session_id, connection)
        raise ExecutionNotFound(session_id, sequence)
    heads = outputs.heads(session_id, sequence, sequence, head_bytes, connection)
    return _from_row(
        row,
        heads.get((sequence, OutputStream.STDOUT), b""),
        heads.get((sequence, OutputStream.STDERR), b""),
    )


def _size(row: Row, head_bytes: int) -> int:
    """The most bytes that the execution can take in a message."""
    _, _, _, command, capability, step, *_, actor, output_size, _, error_output_size, _ = row
    texts = sum(len(text.encode()) for text in (command, capability, step, actor))
    # Ids, numbers, times, digests and the framing of all of it are 376 bytes at most.
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
    heads = outputs.heads(session_id, rows[0][1], rows[taken - 1][1], head_bytes, connection)
    return [
        _from_row(
            row,
            heads.get((row[1], OutputStream.STDOUT), b""),
            heads.get((row[1], OutputStream.STDERR), b""),
        )
        for row in rows[:taken]
    ], taken < len(rows) or len(rows) == limit


@statement
def _select_unfinished(_dialect: DialectName) -> sa.Executable:
    return sa.select(executions.c.sequence).where(
        executions.c.session_id == sa.bindparam("session_id"), sa.text(UNFINISHED)
    )


def unfinished(session_id: str, connection: Connection) -> set[int]:
    """The sequences of the executions whose end is not recorded."""
    return {row[0] for row in connection.all(_select_unfinished, session_id=session_id)}
