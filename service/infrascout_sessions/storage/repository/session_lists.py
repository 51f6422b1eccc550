"""Lists of sessions, most recent first."""

from functools import cache
from typing import Any

import sqlalchemy as sa

from infrascout_sessions.models import Session, SessionFilter, SessionPosition
from infrascout_sessions.storage.repository.sessions import COLUMNS, session_of
from infrascout_sessions.storage.schema import sessions
from infrascout_sessions.storage.statement import Connection, Statement
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


def _conditions(present: frozenset[str]) -> list[sa.ColumnElement[bool]]:
    indexed = next((names for names in _INDEXED if present.issuperset(names)), ())
    conditions: list[sa.ColumnElement[bool]] = [
        (column if name in indexed else column.concat(sa.literal_column("''")))
        == sa.bindparam(name, type_=sa.Text)
        for name, column in _EQUAL.items()
        if name in present
    ]
    if "started_from" in present:
        conditions.append(sessions.c.start_time >= sa.bindparam("started_from"))
    if "started_before" in present:
        conditions.append(sessions.c.start_time < sa.bindparam("started_before"))
    if "after_time" in present:
        conditions.append(
            sa.tuple_(sessions.c.start_time, sessions.c.session_id)
            < sa.tuple_(
                sa.bindparam("after_time", type_=sa.BigInteger),
                sa.bindparam("after_id", type_=sa.Text),
            )
        )
    return conditions


@cache
def _select_page(present: frozenset[str]) -> Statement:
    return Statement(
        lambda _dialect: (
            sa.select(*COLUMNS)
            .where(*_conditions(present))
            .order_by(sessions.c.start_time.desc(), sessions.c.session_id.desc())
            .limit(sa.bindparam("limit", type_=sa.Integer))
            .offset(sa.bindparam("offset", type_=sa.Integer))
        )
    )


@cache
def _select_count(present: frozenset[str]) -> Statement:
    return Statement(
        lambda _dialect: sa.select(sa.func.count()).select_from(
            sa.select(sa.literal_column("1"))
            .select_from(sessions)
            .where(*_conditions(present))
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
    rows = connection.all(
        _select_page(frozenset(parameters)), limit=limit, offset=offset, **parameters
    )
    return [session_of(row) for row in rows]


def count(which: SessionFilter, limit: int, connection: Connection) -> int:
    """How many sessions match, counted up to `limit`."""
    parameters = _parameters(which)
    row = connection.one(_select_count(frozenset(parameters)), limit=limit, **parameters)
    return 0 if row is None else int(row[0])
