"""Sessions: started, read, listed, and moved through their lifecycle."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from infrascout_sessions.errors import (
    AgentBusy,
    AgentNotFound,
    IllegalTransition,
    Refusal,
    ReviewerNotIndependent,
    SessionNotFound,
    SessionNotRunning,
)
from infrascout_sessions.lifecycle import INITIAL, TRANSITIONS, Action, Status
from infrascout_sessions.models import (
    Actor,
    Independence,
    NewSession,
    RequestKey,
    Session,
    SessionFilter,
    SessionPosition,
    Step,
    actor_from_text,
)
from infrascout_sessions.storage.repository import given_rows, requests
from infrascout_sessions.storage.schema import agents, session_recorders, sessions
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    ItemsWork,
    Row,
    ServerTime,
    Statement,
    insert_for,
    server_time_after,
    statement,
)
from infrascout_sessions.storage.text import ascii_lower

I = TypeVar("I")  # noqa: E741 - an item

_COLUMNS = tuple(sessions.c[name] for name in Session._fields)


def _session(row: Row) -> Session:
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


_NEW = ("session_id", "agent_id", "playbook", "description", "actor")


def _insert_of(dialect: DialectName, given: Mapping[str, sa.ColumnElement[str]]) -> Any:
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
    found = sa.select(*row.values()).where(agents.c.agent_id == given["agent_id"])
    return insert_for[dialect](sessions).from_select(list(row), found).on_conflict_do_nothing()


@statement
def _insert(dialect: DialectName) -> sa.Executable:
    given = {name: sa.bindparam(name, type_=sa.Text) for name in _NEW}
    return _insert_of(dialect, given).returning(*_COLUMNS)  # type: ignore[no-any-return]


@statement
def _insert_several(dialect: DialectName) -> sa.Executable:
    given = {name: given_rows.value(index) for index, name in enumerate(_NEW)}
    return _insert_of(dialect, given)  # type: ignore[no-any-return]


@statement
def _select_inserted(_dialect: DialectName) -> sa.Executable:
    return given_rows.gathered(*_COLUMNS).where(sessions.c.session_id == given_rows.value(0))


@statement
def _select(_dialect: DialectName) -> sa.Executable:
    return sa.select(*_COLUMNS).where(sessions.c.session_id == sa.bindparam("session_id"))


@statement
def _select_status(_dialect: DialectName) -> sa.Executable:
    return sa.select(sessions.c.status).where(sessions.c.session_id == sa.bindparam("session_id"))


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
    return _together(_start_several, _start_one, connection, items)


def _together(
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


def _done(
    made: Mapping[int, Session], items: Sequence[NewSession | Step], connection: Connection
) -> Mapping[int, Session]:
    """Keep what the writes have come to."""
    for session in made.values():
        connection.changed.add(session.session_id)
    answered = [(items[index].request, session.session_id) for index, session in made.items()]
    requests.remember_all(connection, [(key, made_id) for key, made_id in answered if key])
    return made


def _start_several(connection: Connection, items: Sequence[NewSession]) -> Mapping[int, Session]:
    rows = [(*new[:4], str(new.actor)) for new in items]
    given_rows.run(_insert_several, rows, connection)
    found = given_rows.select(_select_inserted, rows, connection)
    started = {row[0]: _session(row) for row in found}
    made = {
        index: started[new.session_id]
        for index, new in enumerate(items)
        if new.session_id in started
    }
    return _done(made, items, connection)


def _start_one(connection: Connection, new: NewSession) -> Session:
    earlier = requests.earlier(connection, new.request)
    if earlier is not None:
        return get(earlier, connection)
    # The running session that refused the insert may have ended before it is looked up.
    while True:
        row = connection.one(
            _insert,
            session_id=new.session_id,
            agent_id=new.agent_id,
            playbook=new.playbook,
            description=new.description,
            actor=str(new.actor),
        )
        if row is not None:
            break
        running = connection.one(_select_running_of_agent, agent_id=new.agent_id)
        if running is not None:
            raise AgentBusy(new.agent_id, running[0])
        if connection.one(_select_agent, agent_id=new.agent_id) is None:
            raise AgentNotFound(new.agent_id)
    return _done({0: _session(row)}, [new], connection)[0]


def get(session_id: str, connection: Connection) -> Session:
    """Raises `SessionNotFound`."""
    row = connection.one(_select, session_id=session_id)
    if row is None:
        raise SessionNotFound(session_id)
    return _session(row)


@statement
def _select_several(_dialect: DialectName) -> sa.Executable:
    wanted = sa.func.any(sa.bindparam("session_ids", type_=ARRAY(sa.Text)))
    return sa.select(*_COLUMNS).where(sessions.c.session_id == wanted)


def get_several(session_ids: Sequence[str], connection: Connection) -> dict[str, Session]:
    """Those of the sessions that exist, by id; on PostgreSQL in one round trip."""
    if connection.dialect == "postgresql":
        rows = connection.all(_select_several, session_ids=session_ids)
    else:
        found = (connection.one(_select, session_id=session_id) for session_id in session_ids)
        rows = [row for row in found if row is not None]
    return {row[0]: _session(row) for row in rows}


def _status(session_id: str, connection: Connection) -> Status:
    row = connection.one(_select_status, session_id=session_id)
    if row is None:
        raise SessionNotFound(session_id)
    return Status(row[0])


def require(session_id: str, connection: Connection) -> None:
    """Raises `SessionNotFound`."""
    _status(session_id, connection)


def why_not_running(session_id: str, connection: Connection) -> Refusal:
    """Explains why a session's gate was shut."""
    try:
        return SessionNotRunning(session_id, _status(session_id, connection))
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


# The lifecycle.

_TIME = server_time_after(sessions.c.last_activity_time)
_ACTOR = sa.bindparam("actor", type_=sa.Text)


def _changes(
    action: Action, text: sa.ColumnElement[str], actor: sa.ColumnElement[str]
) -> Mapping[str, Any]:
    end = {"end_time": _TIME, "end_actor": actor}
    of_action: Mapping[Action, Mapping[str, Any]] = {
        Action.SUBMIT: {"summary": text, "submit_time": _TIME, "submit_actor": actor},
        Action.COMPLETE: {
            "review_comment": text,
            "review_independence": sa.bindparam("independence", type_=sa.Text),
            **end,
        },
        Action.FAIL: {"status_reason": text, **end},
        Action.INTERRUPT: {"status_reason": text, **end},
    }
    return {
        "status": sa.literal_column(f"'{TRANSITIONS[action].target.value}'"),
        "last_activity_time": _TIME,
        **of_action[action],
    }


def _transition(action: Action, *conditions: sa.ColumnElement[bool]) -> Statement:
    sources = TRANSITIONS[action].sources

    def build(_dialect: DialectName) -> sa.Executable:
        return (
            sa.update(sessions)
            .where(
                sessions.c.session_id == sa.bindparam("session_id"),
                sa.or_(*(sa.text(f"status = '{status.value}'") for status in sorted(sources))),
                *conditions,
            )
            .values(_changes(action, sa.bindparam("text", type_=sa.Text), _ACTOR))
            .returning(*_COLUMNS)
        )

    return Statement(build)


def _transition_of_several(action: Action) -> Statement:
    def build(_dialect: DialectName) -> sa.Executable:
        return (
            sa.update(sessions)
            .where(
                sessions.c.session_id == given_rows.value(0),
                has_status(*TRANSITIONS[action].sources),
            )
            .values(_changes(action, given_rows.value(1), given_rows.value(2)))
            .returning(*_COLUMNS)
        )

    return Statement(build)


_TRANSITIONS: Mapping[Action, Statement] = {action: _transition(action) for action in Action}
_TRANSITIONS_OF_SEVERAL: Mapping[Action, Statement] = {
    action: _transition_of_several(action) for action in Action
}

# Who records holds the session's row, and so does who submits it: whoever finds a session pending
# finds everybody who has recorded in it.
_HAS_RECORDED = sa.exists(
    sa.select(sa.literal_column("1"))
    .where(session_recorders.c.session_id == sessions.c.session_id)
    .where(session_recorders.c.actor == _ACTOR)
)
_INVOLVED: Mapping[str, sa.ColumnElement[bool]] = {
    "started": sessions.c.start_actor == _ACTOR,
    "submitted": sessions.c.submit_actor == _ACTOR,
    "recorded": _HAS_RECORDED,
}
_COMPLETE_INDEPENDENTLY = _transition(
    Action.COMPLETE, *(sa.not_(involved) for involved in _INVOLVED.values())
)

_IDLE = sessions.c.last_activity_time <= ServerTime() - sa.bindparam(
    "idle_microseconds", type_=sa.BigInteger
)

_INTERRUPT_IDLE = _transition(Action.INTERRUPT, _IDLE)


def _move(
    action: Action, connection: Connection, items: Sequence[Step]
) -> Sequence[Session | Refusal]:
    return _together(partial(_move_several, action), partial(_move_one, action), connection, items)


move: Mapping[Action, ItemsWork[Step, Session]] = {
    action: partial(_move, action) for action in Action if action is not Action.COMPLETE
}
"""Takes steps of the lifecycle, on PostgreSQL one at a time.

Gives each the session or why it is refused: `SessionNotFound`, `IllegalTransition`,
`RequestIdReused`.
"""


def _move_several(
    action: Action, connection: Connection, items: Sequence[Step]
) -> Mapping[int, Session]:
    # A second step of the same session is looked at once the first one is taken.
    firsts: dict[str, int] = {}
    for index, step in enumerate(items):
        firsts.setdefault(step.session_id, index)
    steps = [items[index] for index in firsts.values()]
    rows = [(step.session_id, step.text, str(step.actor)) for step in steps]
    moved = given_rows.run(_TRANSITIONS_OF_SEVERAL[action], rows, connection)
    return _done({firsts[row[0]]: _session(row) for row in moved}, items, connection)


def _move_one(action: Action, connection: Connection, step: Step) -> Session:
    if requests.earlier(connection, step.request) is not None:
        return get(step.session_id, connection)
    row = connection.one(
        _TRANSITIONS[action],
        session_id=step.session_id,
        text=step.text,
        actor=str(step.actor),
    )
    if row is None:
        raise IllegalTransition(step.session_id, _status(step.session_id, connection), action)
    return _done({0: _session(row)}, [step], connection)[0]


@statement
def _select_involvement(_dialect: DialectName) -> sa.Executable:
    return sa.select(*_INVOLVED.values()).where(sessions.c.session_id == sa.bindparam("session_id"))


def complete(
    session_id: str,
    comment: str,
    reviewer: Actor,
    independence: Independence,
    request: RequestKey | None,
    connection: Connection,
) -> Session:
    """Accept a session; with independence required, only by one who had no part in it.

    Raises `SessionNotFound`, `IllegalTransition`, `ReviewerNotIndependent`, `RequestIdReused`.
    """
    if requests.earlier(connection, request) is not None:
        return get(session_id, connection)
    row = connection.one(
        _COMPLETE_INDEPENDENTLY
        if independence is Independence.REQUIRED
        else _TRANSITIONS[Action.COMPLETE],
        session_id=session_id,
        text=comment,
        actor=str(reviewer),
        independence=independence.value,
    )
    if row is None:
        raise _why_not_completed(session_id, reviewer, connection)
    requests.remember(connection, request, session_id)
    connection.changed.add(session_id)
    return _session(row)


def _why_not_completed(session_id: str, reviewer: Actor, connection: Connection) -> Refusal:
    status = _status(session_id, connection)
    row = connection.one(_select_involvement, session_id=session_id, actor=str(reviewer)) or ()
    involvement = next((how for how, so in zip(_INVOLVED, row, strict=True) if so), None)
    if involvement is None or status not in TRANSITIONS[Action.COMPLETE].sources:
        return IllegalTransition(session_id, status, Action.COMPLETE)
    return ReviewerNotIndependent(session_id, reviewer.subject, involvement)


# Idle sessions.


@statement
def _select_idle(_dialect: DialectName) -> sa.Executable:
    return sa.select(sessions.c.session_id).where(sa.text("status = 'running'"), _IDLE)


def idle(idle_microseconds: int, connection: Connection) -> list[str]:
    """The running sessions without a write for so long."""
    return [row[0] for row in connection.all(_select_idle, idle_microseconds=idle_microseconds)]


def interrupt_idle(
    session_id: str, idle_microseconds: int, reason: str, actor: Actor, connection: Connection
) -> Session | None:
    """Interrupt a session if it is still idle."""
    row = connection.one(
        _INTERRUPT_IDLE,
        session_id=session_id,
        idle_microseconds=idle_microseconds,
        text=reason,
        actor=str(actor),
    )
    if row is None:
        return None
    connection.changed.add(session_id)
    return _session(row)


# Lists.

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
            sa.select(*_COLUMNS)
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
    return [_session(row) for row in rows]


def count(which: SessionFilter, limit: int, connection: Connection) -> int:
    """How many sessions match, counted up to `limit`."""
    parameters = _parameters(which)
    row = connection.one(_select_count(frozenset(parameters)), limit=limit, **parameters)
    return 0 if row is None else int(row[0])
