"""Recording on PostgreSQL: the gates, the executions and all that goes with them as one statement.

It runs in AUTOCOMMIT and costs one round trip, whatever it records.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from infrascout_sessions.models import NewExecution, OutputStream
from infrascout_sessions.storage.schema import (
    executions,
    outputs,
    requests,
    session_recorders,
    sessions,
)
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    insert_for,
    server_time_after,
    statement,
)

# What an item brings, one array each.
_ITEM: Mapping[str, Any] = {
    "session_id": sa.Text(),
    "execution_id": sa.Text(),
    "command": sa.Text(),
    "capability": sa.Text(),
    "step": sa.Text(),
    "exit_code": sa.Integer(),
    "start_time": sa.BigInteger(),
    "end_time": sa.BigInteger(),
    "actor": sa.Text(),
    "output": sa.LargeBinary(),
    "output_sha256": sa.LargeBinary(),
    "error_output": sa.LargeBinary(),
    "error_output_sha256": sa.LargeBinary(),
    "rpc": sa.Text(),
    "request_id": sa.Text(),
    "digest": sa.LargeBinary(),
}


# What tells a repeat.
_REQUEST: Mapping[str, Any] = {
    name: _ITEM[name] for name in ("session_id", "rpc", "actor", "request_id")
}


def _given(columns: Mapping[str, Any]) -> Any:
    """The arrays as rows, each with its `position` from 1."""
    arrays = (sa.bindparam(name, type_=ARRAY(kind)) for name, kind in columns.items())
    return (
        sa.func.unnest(*arrays)
        .table_valued(
            *(sa.column(name, kind) for name, kind in columns.items()), with_ordinality="position"
        )
        .render_derived(name="given")
    )


def _values(item: NewExecution) -> tuple[Any, ...]:
    output, error_output, request = item.output, item.error_output, item.request
    return (
        item.session_id,
        item.execution_id,
        item.command,
        item.capability,
        item.step,
        item.exit_code,
        item.start_time,
        item.end_time,
        str(item.actor),
        output and output.head,
        output and output.sha256,
        error_output and error_output.head,
        error_output and error_output.sha256,
        request and request.rpc,
        request and request.request_id,
        request and request.digest,
    )


@statement
def _record(_dialect: DialectName) -> sa.Executable:
    given = _given(_ITEM)
    item = sa.select(given).cte("item")
    added = (
        sa.select(
            item.c.session_id,
            sa.func.count().label("added"),
            sa.func.count()
            .filter(item.c.exit_code.is_distinct_from(sa.literal_column("0")))
            .label("failed"),
        )
        .group_by(item.c.session_id)
        .cte("added")
    )
    # In the order of their ids, so that no two statements wait for each other.
    locked = (
        sa.select(sessions.c.session_id)
        .where(
            sessions.c.session_id.in_(sa.select(added.c.session_id)),
            sa.text("sessions.status = 'running'"),
        )
        .order_by(sessions.c.session_id)
        .with_for_update()
        .cte("locked")
    )
    gate = (
        sa.update(sessions)
        .where(
            sessions.c.session_id == added.c.session_id,
            sessions.c.session_id.in_(sa.select(locked.c.session_id)),
        )
        .values(
            execution_count=sessions.c.execution_count + added.c.added,
            failed_execution_count=sessions.c.failed_execution_count + added.c.failed,
            last_activity_time=server_time_after(sessions.c.last_activity_time),
        )
        .returning(
            sessions.c.session_id,
            (sessions.c.execution_count - added.c.added).label("before"),
            sessions.c.last_activity_time.label("time"),
        )
        .cte("gate")
    )
    placed = (
        sa.select(
            item,
            gate.c.time,
            sa.cast(
                gate.c.before
                + sa.func.row_number().over(
                    partition_by=item.c.session_id, order_by=item.c.position
                ),
                sa.Integer,
            ).label("sequence"),
        )
        .join(gate, gate.c.session_id == item.c.session_id)
        .cte("placed")
    )
    return _stored(placed, placed.c, placed.c.position)


@statement
def _record_one(_dialect: DialectName) -> sa.Executable:
    """The same for one item, without all that deals out places among several."""
    failed = sa.bindparam("exit_code", type_=_ITEM["exit_code"]).is_distinct_from(
        sa.literal_column("0")
    )
    gate = (
        sa.update(sessions)
        .where(
            sessions.c.session_id == sa.bindparam("session_id", type_=_ITEM["session_id"]),
            sa.text("sessions.status = 'running'"),
        )
        .values(
            execution_count=sessions.c.execution_count + sa.literal_column("1"),
            failed_execution_count=sessions.c.failed_execution_count + sa.cast(failed, sa.Integer),
            last_activity_time=server_time_after(sessions.c.last_activity_time),
        )
        .returning(
            sessions.c.execution_count.label("sequence"),
            sessions.c.last_activity_time.label("time"),
        )
        .cte("gate")
    )
    given = {name: sa.bindparam(name, type_=kind) for name, kind in _ITEM.items()}
    new = SimpleNamespace(**given, sequence=gate.c.sequence, time=gate.c.time)
    return _stored(gate, new, sa.literal_column("1"))


def _stored(placed: sa.CTE, new: Any, position: sa.ColumnElement[int]) -> sa.Executable:
    """Stores what has a place, with all that goes with it; `new` has its columns."""
    execution = {
        "session_id": new.session_id,
        "sequence": new.sequence,
        "execution_id": new.execution_id,
        "command": new.command,
        "capability": new.capability,
        "step": new.step,
        "exit_code": new.exit_code,
        "start_time": new.start_time,
        "end_time": new.end_time,
        "record_time": new.time,
        "finish_record_time": new.time,
        "actor": new.actor,
        "output_size": sa.func.octet_length(new.output),
        "output_sha256": new.output_sha256,
        "error_output_size": sa.func.octet_length(new.error_output),
        "error_output_sha256": new.error_output_sha256,
    }
    chunks = sa.union_all(
        *(
            sa.select(
                new.session_id,
                new.sequence,
                sa.literal_column(str(stream.value)),
                sa.literal_column("0"),
                data,
            )
            .select_from(placed)
            .where(sa.func.octet_length(data) > sa.literal_column("0"))
            for stream, data in (
                (OutputStream.STDOUT, new.output),
                (OutputStream.STDERR, new.error_output),
            )
        )
    )
    repeatable = (
        sa.select(
            new.session_id,
            new.rpc,
            new.actor,
            new.request_id,
            new.digest,
            sa.cast(new.sequence, sa.Text),
        )
        .select_from(placed)
        .where(new.request_id.is_not(None))
    )
    recorders = sa.select(new.session_id, new.actor).select_from(placed).distinct()
    executed = sa.select(*execution.values()).select_from(placed)
    return sa.select(position, new.sequence, new.time).add_cte(
        sa.insert(executions).from_select(list(execution), executed).cte("e"),
        sa.insert(outputs).from_select(list(outputs.c), chunks).cte("o"),
        sa.insert(requests).from_select(list(requests.c), repeatable).cte("r"),
        insert_for["postgresql"](session_recorders)
        .from_select(list(session_recorders.c), recorders)
        .on_conflict_do_nothing()
        .cte("a"),
    )


def place(connection: Connection, items: Sequence[NewExecution]) -> dict[int, tuple[int, int]]:
    """Record what running sessions take: the sequence and the time of each, by its index.

    Raises `UniqueViolationError` if one of them is a repeat, and then records none.
    """
    if len(items) == 1:
        values = dict(zip(_ITEM, _values(items[0]), strict=True))
        row = connection.one(_record_one, **values)
        return {} if row is None else {0: (row[1], row[2])}
    columns = zip(*(_values(item) for item in items), strict=True)
    arrays = {name: list(column) for name, column in zip(_ITEM, columns, strict=True)}
    placed = connection.all(_record, **arrays)
    return {position - 1: (sequence, time) for position, sequence, time in placed}


class Known(NamedTuple):
    """What an earlier request has made."""

    digest: bytes
    sequence: int
    execution_id: str
    time: int


@statement
def _select_known(_dialect: DialectName) -> sa.Executable:
    given = _given(_REQUEST)
    # By itself: a resource of another RPC is no number.
    found = (
        sa.select(given.c.position, requests)
        .join(requests, sa.and_(*(requests.c[name] == given.c[name] for name in _REQUEST)))
        .cte("found")
        .prefix_with("MATERIALIZED")
    )
    return sa.select(
        found.c.position,
        found.c.digest,
        executions.c.sequence,
        executions.c.execution_id,
        executions.c.record_time,
    ).join(
        executions,
        sa.and_(
            executions.c.session_id == found.c.session_id,
            executions.c.sequence == sa.cast(found.c.resource, sa.Integer),
        ),
    )


def known(connection: Connection, items: Sequence[NewExecution]) -> dict[int, Known]:
    """What the same requests have made before, by the index of the item."""
    keys = [
        (item.session_id, request.rpc, str(request.actor), request.request_id)
        if (request := item.request)
        else (item.session_id, None, None, None)
        for item in items
    ]
    columns = zip(*keys, strict=True)
    arrays = {name: list(column) for name, column in zip(_REQUEST, columns, strict=True)}
    return {
        position - 1: Known(*found) for position, *found in connection.all(_select_known, **arrays)
    }
