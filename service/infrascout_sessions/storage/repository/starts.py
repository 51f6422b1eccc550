"""Sessions started."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from infrascout_sessions.errors import AgentBusy, AgentNotFound, Refusal
from infrascout_sessions.lifecycle import INITIAL
from infrascout_sessions.models import NewSession, Session
from infrascout_sessions.storage.repository import given_rows, requests
from infrascout_sessions.storage.repository.sessions import (
    COLUMNS,
    get,
    keep,
    run_together,
    session_of,
)
from infrascout_sessions.storage.schema import agents, sessions
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    ServerTime,
    insert_for,
    statement,
)

_NEW = ("session_id", "agent_id", "playbook", "description", "actor")


def _insert_of(
    dialect: DialectName,
    given: Mapping[str, sa.ColumnElement[str]],
    *conditions: sa.ColumnElement[bool],
) -> Any:
    """Opens a session, or several, on agents that exist and have none running."""
    row: dict[str, Any] = {
        "session_id": given["session_id"],
        "agent_id": agents.c.agent_id,
        "hostname": agents.c.hostname,
        "hostname_lower": agents.c.hostname_lower,
        "playbook": given["playbook"],
        "description": given["description"],
        "status": sa.literal_column(f"'{INITIAL.value}'"),
        "start_time": ServerTime(),
        "start_actor": given["actor"],
        "last_activity_time": ServerTime(),
        **dict.fromkeys(("status_reason", "summary", "review_comment"), sa.literal_column("''")),
        **dict.fromkeys(
            ("execution_count", "failed_execution_count", "insight_count"), sa.literal_column("0")
        ),
    }
    found = sa.select(*row.values()).where(agents.c.agent_id == given["agent_id"], *conditions)
    return insert_for[dialect](sessions).from_select(list(row), found).on_conflict_do_nothing()


@statement
def _insert(dialect: DialectName) -> sa.Executable:
    given = {name: sa.bindparam(name, type_=sa.Text) for name in _NEW}
    return _insert_of(dialect, given, requests.NOT_MADE_BEFORE).returning(*COLUMNS)  # type: ignore[no-any-return]


@statement
def _insert_several(dialect: DialectName) -> sa.Executable:
    given = {name: given_rows.value(index) for index, name in enumerate(_NEW)}
    return _insert_of(dialect, given)  # type: ignore[no-any-return]


@statement
def _select_inserted(_dialect: DialectName) -> sa.Executable:
    return given_rows.gathered(*COLUMNS).where(sessions.c.session_id == given_rows.value(0))


@statement
def _select_running_of_agent(_dialect: DialectName) -> sa.Executable:
    return sa.select(sessions.c.session_id).where(
        sessions.c.agent_id == sa.bindparam("agent_id"), sa.text("status = 'running'")
    )


@statement
def _select_agent(_dialect: DialectName) -> sa.Executable:
    return sa.select(agents.c.agent_id).where(agents.c.agent_id == sa.bindparam("agent_id"))


def start(connection: Connection, items: Sequence[NewSession]) -> Sequence[Session | Refusal]:
    """Open sessions, on PostgreSQL one at a time.

    Gives each or why it is refused: `AgentNotFound`, `AgentBusy`, `RequestIdReused`. One by itself
    may be a repeat and gets the session that was started before; one among others makes this raise
    the database's own error, and then they are to be run one by one.
    """
    return run_together(_start_several, _start_one, connection, items)


def _start_several(connection: Connection, items: Sequence[NewSession]) -> Mapping[int, Session]:
    rows = [(*new[:4], str(new.actor)) for new in items]
    given_rows.run(_insert_several, rows, connection)
    found = given_rows.select(_select_inserted, rows, connection)
    started = {row[0]: session_of(row) for row in found}
    made = {
        index: started[new.session_id]
        for index, new in enumerate(items)
        if new.session_id in started
    }
    return keep(made, items, connection)


def _start_one(connection: Connection, new: NewSession) -> Session:
    # The running session that refused the insert may have ended before it is looked up.
    while True:
        row = connection.one(
            _insert,
            session_id=new.session_id,
            agent_id=new.agent_id,
            playbook=new.playbook,
            description=new.description,
            actor=str(new.actor),
            **requests.of(new.request),
        )
        if row is not None:
            break
        earlier = requests.earlier(connection, new.request)
        if earlier is not None:
            return get(earlier, connection)
        running = connection.one(_select_running_of_agent, agent_id=new.agent_id)
        if running is not None:
            raise AgentBusy(new.agent_id, running[0])
        if connection.one(_select_agent, agent_id=new.agent_id) is None:
            raise AgentNotFound(new.agent_id)
    return keep({0: session_of(row)}, [new], connection)[0]
