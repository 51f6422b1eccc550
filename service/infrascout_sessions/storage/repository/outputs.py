"""Outputs: chunks at stated offsets, read from any offset, hashed when whole."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import sqlalchemy as sa

from infrascout_sessions.errors import (
    ExecutionFinished,
    ExecutionNotFound,
    OutputOffsetBeyondEnd,
    OutputOffsetMismatch,
    OutputTooLarge,
)
from infrascout_sessions.models import Actor, OutputStream
from infrascout_sessions.storage.repository.sessions import add_recorders, require, touch
from infrascout_sessions.storage.schema import executions, outputs
from infrascout_sessions.storage.statement import Connection, DialectName, Statement, statement

_SIZES = {
    OutputStream.STDOUT: executions.c.output_size,
    OutputStream.STDERR: executions.c.error_output_size,
}

_WINDOW_BYTES = 1024 * 1024
_WINDOW_CHUNKS = 2000


@statement
def _insert(_dialect: DialectName) -> sa.Executable:
    return sa.insert(outputs)


@statement
def _select_sizes(_dialect: DialectName) -> sa.Executable:
    return sa.select(
        executions.c.output_size, executions.c.error_output_size, executions.c.finish_record_time
    ).where(
        executions.c.session_id == sa.bindparam("session_id"),
        executions.c.sequence == sa.bindparam("sequence"),
    )


def _grow(stream: OutputStream) -> Statement:
    """Adds to the size of an output if it is still the expected one and the execution runs."""
    column = _SIZES[stream]
    size = sa.func.coalesce(column, sa.literal_column("0"))
    offset = sa.bindparam("offset", type_=sa.BigInteger)
    return Statement(
        lambda _dialect: (
            sa.update(executions)
            .where(
                executions.c.session_id == sa.bindparam("session_id"),
                executions.c.sequence == sa.bindparam("sequence"),
                executions.c.finish_record_time.is_(None),
                size == offset,
            )
            .values({column: offset + sa.bindparam("added", type_=sa.BigInteger)})
            .returning(column)
        )
    )


_GROW: Mapping[OutputStream, Statement] = {stream: _grow(stream) for stream in OutputStream}


@statement
def _select_window(_dialect: DialectName) -> sa.Executable:
    """The chunks from the one that holds an offset, to some way behind it."""

    def of_output(table: Any) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            table.c.session_id == sa.bindparam("session_id"),
            table.c.sequence == sa.bindparam("sequence"),
            table.c.stream == sa.bindparam("stream"),
        )

    offset = sa.bindparam("offset", type_=sa.BigInteger)
    earlier = outputs.alias("earlier")
    first = (
        sa.select(sa.func.max(earlier.c.byte_offset))
        .where(*of_output(earlier), earlier.c.byte_offset <= offset)
        .scalar_subquery()
    )
    return (
        sa.select(outputs.c.byte_offset, outputs.c.data)
        .where(
            *of_output(outputs),
            outputs.c.byte_offset >= first,
            outputs.c.byte_offset < sa.bindparam("end", type_=sa.BigInteger),
        )
        .order_by(outputs.c.byte_offset)
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )


@statement
def _select_heads(_dialect: DialectName) -> sa.Executable:
    """The beginnings of the outputs of a range of executions, cut to `head` bytes each."""
    head = sa.bindparam("head", type_=sa.Integer)
    return (
        sa.select(
            outputs.c.sequence,
            outputs.c.stream,
            sa.func.substr(
                outputs.c.data,
                sa.literal_column("1"),
                head - sa.cast(outputs.c.byte_offset, sa.Integer),
            ),
        )
        .where(
            outputs.c.session_id == sa.bindparam("session_id"),
            outputs.c.sequence.between(sa.bindparam("first"), sa.bindparam("last")),
            outputs.c.byte_offset < head,
        )
        .order_by(outputs.c.sequence, outputs.c.stream, outputs.c.byte_offset)
    )


def store(
    connection: Connection, chunks: Sequence[tuple[str, int, OutputStream, int, bytes]]
) -> None:
    """Store chunks: session, sequence, stream, offset and data of each."""
    connection.insert(_insert, chunks)


def heads(
    session_id: str, first: int, last: int, head_bytes: int, connection: Connection
) -> dict[tuple[int, int], bytes]:
    """The first `head_bytes` of each output of a range, by sequence and stream."""
    found: dict[tuple[int, int], bytes] = {}
    if head_bytes == 0:
        return found
    for sequence, stream, data in connection.all(
        _select_heads, session_id=session_id, first=first, last=last, head=head_bytes
    ):
        known = found.get((sequence, stream))
        found[sequence, stream] = data if known is None else known + data
    return found


def _sizes(
    session_id: str, sequence: int, connection: Connection
) -> tuple[dict[OutputStream, int], bool]:
    """The sizes so far, and whether the execution has finished."""
    row = connection.one(_select_sizes, session_id=session_id, sequence=sequence)
    if row is None:
        require(session_id, connection)
        raise ExecutionNotFound(session_id, sequence)
    return {OutputStream.STDOUT: row[0] or 0, OutputStream.STDERR: row[1] or 0}, row[2] is not None


def _window(
    session_id: str,
    sequence: int,
    stream: OutputStream,
    offset: int,
    end: int,
    connection: Connection,
) -> bytes:
    """Bytes from `offset` to `end` at most, at least one if `offset` is less than the size."""
    rows = connection.all(
        _select_window,
        session_id=session_id,
        sequence=sequence,
        stream=stream,
        offset=offset,
        end=end,
        limit=_WINDOW_CHUNKS,
    )
    if not rows:
        return b""
    first = rows[0][0]
    return b"".join(data for _, data in rows)[offset - first : end - first]


def _holds(
    session_id: str,
    sequence: int,
    stream: OutputStream,
    offset: int,
    data: bytes,
    connection: Connection,
) -> bool:
    """Whether exactly these bytes are stored at the offset."""
    at = 0
    while at < len(data):
        stored = _window(session_id, sequence, stream, offset + at, offset + len(data), connection)
        if not stored or data[at : at + len(stored)] != stored:
            return False
        at += len(stored)
    return True


def append(
    session_id: str,
    sequence: int,
    stream: OutputStream,
    offset: int,
    data: bytes,
    maximum_bytes: int,
    actor: Actor,
    connection: Connection,
) -> int:
    """Add a chunk to an output of an unfinished execution and return the output's size.

    A chunk inside what is stored and equal to it changes nothing, whatever the state. Raises
    `SessionNotFound`, `ExecutionNotFound`, `SessionNotRunning`, `ExecutionFinished`,
    `OutputOffsetMismatch`, `OutputTooLarge`.
    """
    sizes, _ = _sizes(session_id, sequence, connection)
    repeated = data and offset + len(data) <= sizes[stream]
    if repeated and _holds(session_id, sequence, stream, offset, data, connection):
        return sizes[stream]
    touch(session_id, connection)
    # Read again: on PostgreSQL only the gate has made others wait.
    sizes, finished = _sizes(session_id, sequence, connection)
    if finished:
        raise ExecutionFinished(session_id, sequence)
    if not data and offset < sizes[stream]:
        return sizes[stream]  # a sign of life that comes late
    if offset != sizes[stream]:
        raise OutputOffsetMismatch(sizes[stream])
    if sum(sizes.values()) + len(data) > maximum_bytes:
        raise OutputTooLarge(session_id, sequence, maximum_bytes)
    grown = connection.one(
        _GROW[stream], session_id=session_id, sequence=sequence, offset=offset, added=len(data)
    )
    assert grown is not None  # noqa: S101 - the gate holds everybody else
    add_recorders(connection, [(session_id, actor)])
    if data:
        store(connection, [(session_id, sequence, stream, offset, data)])
    return int(grown[0])


def size(
    session_id: str, sequence: int, stream: OutputStream, offset: int, connection: Connection
) -> int:
    """The size of an output so far, at least `offset`.

    Raises `SessionNotFound`, `ExecutionNotFound`, `OutputOffsetBeyondEnd`.
    """
    sizes, _ = _sizes(session_id, sequence, connection)
    if offset > sizes[stream]:
        raise OutputOffsetBeyondEnd(sizes[stream])
    return sizes[stream]


def read(
    session_id: str,
    sequence: int,
    stream: OutputStream,
    offset: int,
    end: int,
    connection: Connection,
) -> bytes:
    """The next bytes from `offset`, at most 1 MiB and not beyond `end`."""
    return _window(
        session_id, sequence, stream, offset, min(end, offset + _WINDOW_BYTES), connection
    )


class Digest:
    """The SHA-256 of an output that may still grow, taken in a piece at a time."""

    def __init__(self, session_id: str, sequence: int, stream: OutputStream) -> None:
        self._of = (session_id, sequence, stream)
        self._at = 0
        self._hash = sha256()

    def lacks(self, size_bytes: int) -> int:
        """How much of an output of this size has not been taken in."""
        return size_bytes - self._at

    def advance(self, size_bytes: int, connection: Connection) -> None:
        """Take in the next piece of an output of this size."""
        data = read(*self._of, self._at, size_bytes, connection)
        self._hash.update(data)
        self._at += len(data)

    def whole(self, size_bytes: int, connection: Connection) -> bytes:
        """Of all of an output of this size; what has been taken in stays as it is."""
        ahead = Digest(*self._of)
        ahead._at, ahead._hash = self._at, self._hash.copy()
        while ahead.lacks(size_bytes):
            ahead.advance(size_bytes, connection)
        return ahead._hash.digest()
