"""Sessions moved through their lifecycle: each step is one conditional UPDATE."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from infrascout_sessions.errors import IllegalTransition, Refusal, ReviewerNotIndependent
from infrascout_sessions.lifecycle import TRANSITIONS, Action
from infrascout_sessions.models import Actor, Independence, RequestKey, Session, Step
from infrascout_sessions.storage.repository import given_rows, requests
from infrascout_sessions.storage.repository.sessions import (
    COLUMNS,
    get,
    has_status,
    keep,
    run_together,
    session_of,
    status_of,
)
from infrascout_sessions.storage.schema import session_recorders, sessions
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    ItemsWork,
    ServerTime,
    Statement,
    server_time_after,
    statement,
)

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
            .returning(*COLUMNS)
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
            .returning(*COLUMNS)
        )

    return Statement(build)


_TRANSITIONS: Mapping[Action, Statement] = {
    action: _transition(action, requests.NOT_MADE_BEFORE) for action in Action
}
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
    Action.COMPLETE,
    requests.NOT_MADE_BEFORE,
    *(sa.not_(involved) for involved in _INVOLVED.values()),
)

_IDLE = sessions.c.last_activity_time <= ServerTime() - sa.bindparam(
    "idle_microseconds", type_=sa.BigInteger
)

_INTERRUPT_IDLE = _transition(Action.INTERRUPT, _IDLE)


def _move(
    action: Action, connection: Connection, items: Sequence[Step]
) -> Sequence[Session | Refusal]:
    return run_together(
        partial(_move_several, action), partial(_move_one, action), connection, items
    )


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
    return keep({firsts[row[0]]: session_of(row) for row in moved}, items, connection)


def _move_one(action: Action, connection: Connection, step: Step) -> Session:
    row = connection.one(
        _TRANSITIONS[action],
        session_id=step.session_id,
        text=step.text,
        actor=str(step.actor),
        **requests.of(step.request),
    )
    if row is None:
        if requests.earlier(connection, step.request) is not None:
            return get(step.session_id, connection)
        raise IllegalTransition(step.session_id, status_of(step.session_id, connection), action)
    return keep({0: session_of(row)}, [step], connection)[0]


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
    row = connection.one(
        _COMPLETE_INDEPENDENTLY
        if independence is Independence.REQUIRED
        else _TRANSITIONS[Action.COMPLETE],
        session_id=session_id,
        text=comment,
        actor=str(reviewer),
        independence=independence.value,
        **requests.of(request),
    )
    if row is None:
        if requests.earlier(connection, request) is not None:
            return get(session_id, connection)
        raise _why_not_completed(session_id, reviewer, connection)
    requests.remember(connection, request, session_id)
    connection.changed.add(session_id)
    return session_of(row)


def _why_not_completed(session_id: str, reviewer: Actor, connection: Connection) -> Refusal:
    status = status_of(session_id, connection)
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
    return session_of(row)
