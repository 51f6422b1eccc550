"""Lists of sessions, most recent first."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from infrascout_sessions.models import Session, SessionFilter, SessionPosition
from infrascout_sessions.storage.repository import given_rows
from infrascout_sessions.storage.repository.sessions import COLUMNS, session_of
from infrascout_sessions.storage.schema import sessions
from infrascout_sessions.storage.statement import Connection, DialectName, Statement
from infrascout_sessions.storage.text import ascii_lower

_EQUAL = {
    "agent_id": sessions.c.agent_id,
    "hostname": sessions.c.hostname_lower,
    "playbook": sessions.c.playbook,
    "status": sessions.c.status,
}

# Which filter's index is read, most selective first. The other filters are made unusable for an
# index (`|| ''`): without statistics SQLite takes any of them, and with them the wrong one.
_INDEXED = (("agent_id",), ("hostname",), ("playbook", "status"), ("playbook",), ("status",))

_START = (sessions.c.start_time, sessions.c.session_id)


def _given(name: str) -> sa.ColumnElement[Any]:
    return sa.bindparam(name, type_=sa.BigInteger if name.endswith("_time") else sa.Text)


_FROM, _BEFORE = (sa.bindparam(n, type_=sa.BigInteger) for n in ("started_from", "started_before"))
_AFTER = (_given("after_time"), _given("after_id"))


def _matching(
    dialect: DialectName, present: frozenset[str], *columns: sa.ColumnElement[Any]
) -> sa.Select[Any]:
    """A SELECT of the sessions that match the filters given, in the order of the list."""
    indexed = next((names for names in _INDEXED if present.issuperset(names)), ())
    others = [
        _EQUAL[name].concat(sa.literal_column("''")) == _given(name)
        for name in _EQUAL
        if name in present and name not in indexed
    ]
    bounds = _BOUNDS[dialect](indexed, present)
    # PostgreSQL takes the index by start for a list that is ordered by start alone, whatever it
    # filters by, and reads all of it where what it looks for is rare.
    leading = [_EQUAL[name] for name in indexed] if dialect == "postgresql" else []
    order = [column.desc() for column in (*leading, *_START)]
    return sa.select(*columns).select_from(sessions).where(*bounds, *others).order_by(*order)


def _equal_and_range(
    indexed: Sequence[str], present: frozenset[str]
) -> list[sa.ColumnElement[bool]]:
    bounds: list[sa.ColumnElement[bool]] = [_EQUAL[name] == _given(name) for name in indexed]
    if "started_from" in present:
        bounds.append(sessions.c.start_time >= _FROM)
    if "started_before" in present:
        bounds.append(sessions.c.start_time < _BEFORE)
    if "after_time" in present:
        bounds.append(sa.tuple_(*_START) < sa.tuple_(*_AFTER))
    return bounds


def _rows_between(indexed: Sequence[str], present: frozenset[str]) -> list[sa.ColumnElement[bool]]:
    """The same as one bound from below and one from above on the columns of the index.

    With `=` PostgreSQL would know that the column does not matter for the order.
    """
    columns, values = [_EQUAL[name] for name in indexed], [_given(name) for name in indexed]

    def row(of: Sequence[Any], *more: Any) -> Any:
        return sa.tuple_(*of, *more)

    # What the bounds say already of all columns but the first, for the planner's estimate.
    bounds: list[sa.ColumnElement[bool]] = [
        column == value for column, value in zip(columns[1:], values[1:], strict=True)
    ]
    if "started_from" in present:
        bounds.append(row(columns, sessions.c.start_time) >= row(values, _FROM))
    elif columns:
        bounds.append(row(columns) >= row(values))
    if "after_time" in present:
        bounds.append(row(columns, *_START) < row(values, *_AFTER))
        if "started_before" in present:  # of a token of ours it is true
            bounds.append(sessions.c.start_time < _BEFORE)
    elif "started_before" in present:
        bounds.append(row(columns, sessions.c.start_time) < row(values, _BEFORE))
    elif columns:
        bounds.append(row(columns) <= row(values))
    return bounds


_BOUNDS: Mapping[
    DialectName, Callable[[Sequence[str], frozenset[str]], list[sa.ColumnElement[bool]]]
] = {"sqlite": _equal_and_range, "postgresql": _rows_between}


@cache
def _select_page(present: frozenset[str]) -> Statement:
    return Statement(
        lambda dialect: given_rows.gathered_in_order(
            _matching(dialect, present, *COLUMNS)
            .limit(sa.bindparam("limit", type_=sa.Integer))
            .offset(sa.bindparam("offset", type_=sa.Integer)),
            dialect,
        )
    )


@cache
def _select_count(present: frozenset[str]) -> Statement:
    return Statement(
        lambda dialect: sa.select(sa.func.count()).select_from(
            _matching(dialect, present, sa.literal_column("1"))
            .limit(sa.bindparam("limit", type_=sa.Integer))
            .subquery()
        )
    )


def _parameters(which: SessionFilter) -> dict[str, Any]:
    given = {name: value for name, value in which._asdict().items() if value is not None}
    if "hostname" in given:
        given["hostname"] = ascii_lower(given["hostname"])
    return given


def page(
    which: SessionFilter,
    after: SessionPosition | None,
    offset: int,
    limit: int,
    connection: Connection,
) -> list[Session]:
    """Up to `limit` sessions, most recent first, from `offset` or from behind `after`."""
    parameters = _parameters(which)
    if after is not None:
        parameters |= {"after_time": after.start_time, "after_id": after.session_id}
    rows = given_rows.rows_of(
        _select_page(frozenset(parameters)), connection, limit=limit, offset=offset, **parameters
    )
    return [session_of(row) for row in rows]


def count(which: SessionFilter, limit: int, connection: Connection) -> int:
    """How many sessions match, counted up to `limit`."""
    parameters = _parameters(which)
    row = connection.one(_select_count(frozenset(parameters)), limit=limit, **parameters)
    return 0 if row is None else int(row[0])
