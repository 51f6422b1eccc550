"""Sessions one by one, and what those share who start, move, list or write in them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from infrascout_sessions.errors import (
    Refusal,
    SessionNotFound,
    SessionNotRunning,
)
from infrascout_sessions.lifecycle import Status
from infrascout_sessions.models import (
    Actor,
    Independence,
    NewSession,
    Session,
    Step,
    actor_from_text,
)
from infrascout_sessions.storage.repository import requests
from infrascout_sessions.storage.schema import session_recorders, sessions
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    Row,
    insert_for,
    server_time_after,
    statement,
)

I = TypeVar("I")  # noqa: E741 - an item

COLUMNS = tuple(sessions.c[name] for name in Session._fields)


def session_of(row: Row) -> Session:
    """The session that a row of `COLUMNS` is."""
    values = list(row)
    values[5] = Status(values[5])
    values[12] = actor_from_text(values[12])
    for actor in (15, 17):
        if values[actor] is not None:
            values[actor] = actor_from_text(values[actor])
    if values[19] is not None:
        values[19] = Independence(values[19])
    return Session._make(values)


def has_status(*statuses: Status) -> sa.ColumnElement[bool]:
    """That a session has one of these; its key finds it: `|| ''` hides the index by status."""
    names: list[sa.ColumnElement[str]] = [
        sa.literal_column(f"'{status.value}'") for status in sorted(statuses)
    ]
    return sessions.c.status.concat(sa.literal_column("''")).in_(names)


@statement
def _select(_dialect: DialectName) -> sa.Executable:
    return sa.select(*COLUMNS).where(sessions.c.session_id == sa.bindparam("session_id"))


@statement
def _select_status(_dialect: DialectName) -> sa.Executable:
    return sa.select(sessions.c.status).where(sessions.c.session_id == sa.bindparam("session_id"))


def get(session_id: str, connection: Connection) -> Session:
    """Raises `SessionNotFound`."""
    row = connection.one(_select, session_id=session_id)
    if row is None:
        raise SessionNotFound(session_id)
    return session_of(row)


@statement
def select_several(dialect: DialectName) -> sa.Executable:
    """The sessions with `several_ids`."""
    if dialect == "postgresql":
        wanted: Any = sa.func.any(sa.bindparam("session_ids", type_=ARRAY(sa.Text)))
        return sa.select(*COLUMNS).where(sessions.c.session_id == wanted)
    wanted = sa.func.json_each(sa.bindparam("session_ids", type_=sa.Text)).table_valued("value")
    return sa.select(*COLUMNS).where(sessions.c.session_id.in_(sa.select(wanted.c.value)))


def several_ids(session_ids: Sequence[str], dialect: DialectName) -> Any:
    """The parameter `session_ids` of `select_several`."""
    return session_ids if dialect == "postgresql" else orjson.dumps(session_ids).decode()


def status_of(session_id: str, connection: Connection) -> Status:
    """Raises `SessionNotFound`."""
    row = connection.one(_select_status, session_id=session_id)
    if row is None:
        raise SessionNotFound(session_id)
    return Status(row[0])


def require(session_id: str, connection: Connection) -> None:
    """Raises `SessionNotFound`."""
    status_of(session_id, connection)


def why_not_running(session_id: str, connection: Connection) -> Refusal:
    """Explains why a session's gate was shut."""
    try:
        return SessionNotRunning(session_id, status_of(session_id, connection))
    except SessionNotFound as refusal:
        return refusal


@statement
def _touch(_dialect: DialectName) -> sa.Executable:
    """Checks that the session runs, and holds it until the transaction ends."""
    return (
        sa.update(sessions)
        .where(sessions.c.session_id == sa.bindparam("session_id"), sa.text("status = 'running'"))
        .values(last_activity_time=server_time_after(sessions.c.last_activity_time))
        .returning(
            sessions.c.execution_count, sessions.c.insight_count, sessions.c.last_activity_time
        )
    )


class Touched(NamedTuple):
    """A running session at the time of a write in it."""

    execution_count: int
    insight_count: int
    time: int


def touch(session_id: str, connection: Connection) -> Touched:
    """Note a write in a running session, which nobody else writes in until the transaction ends.

    Raises `SessionNotFound`, `SessionNotRunning`.
    """
    row = connection.one(_touch, session_id=session_id)
    if row is None:
        raise why_not_running(session_id, connection)
    connection.changed.add(session_id)
    return Touched(*row)


@statement
def _insert_recorder(dialect: DialectName) -> sa.Executable:
    return insert_for[dialect](session_recorders).on_conflict_do_nothing()  # type: ignore[no-any-return]


def add_recorders(connection: Connection, recorders: Iterable[tuple[str, Actor]]) -> None:
    """Keep who has recorded in which session, for its review."""
    connection.insert(
        _insert_recorder, [(session_id, str(actor)) for session_id, actor in recorders]
    )


def run_together(
    several: Callable[[Connection, Sequence[I]], Mapping[int, Session]],
    one: Callable[[Connection, I], Session],
    connection: Connection,
    items: Sequence[I],
) -> Sequence[Session | Refusal]:
    """What comes of items: of most of them at once, and of the others one by one."""
    done = several(connection, items) if len(items) > 1 else {}
    outcomes: list[Session | Refusal] = []
    for index, item in enumerate(items):
        try:
            outcomes.append(done.get(index) or one(connection, item))
        except Refusal as refusal:
            outcomes.append(refusal)
    return outcomes


def keep(
    made: Mapping[int, Session], items: Sequence[NewSession | Step], connection: Connection
) -> Mapping[int, Session]:
    """Note what has changed, and what came of the requests; `made` by the index of its item."""
    for session in made.values():
        connection.changed.add(session.session_id)
    answered = [(items[index].request, session.session_id) for index, session in made.items()]
    requests.remember_all(connection, [(key, made_id) for key, made_id in answered if key])
    return made
