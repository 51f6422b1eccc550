"""Insights: saved under their category and key, every revision kept."""

import json
from functools import cache

import sqlalchemy as sa

from infrascout_sessions.errors import ExecutionNotFound
from infrascout_sessions.models import (
    Actor,
    Insight,
    NewInsight,
    RequestKey,
    Severity,
    actor_from_text,
)
from infrascout_sessions.storage.repository import requests
from infrascout_sessions.storage.repository.sessions import add_recorders, require, touch
from infrascout_sessions.storage.schema import insights, sessions
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    Row,
    Statement,
    statement,
)

_COLUMNS = tuple(
    insights.c[name]
    for name in (
        "session_id",
        "position",
        "revision",
        *NewInsight._fields,
        "create_time",
        "update_time",
        "actor",
    )
)


@statement
def _count_one_more(_dialect: DialectName) -> sa.Executable:
    return (
        sa.update(sessions)
        .where(sessions.c.session_id == sa.bindparam("session_id"))
        .values(insight_count=sessions.c.insight_count + sa.literal_column("1"))
        .returning(sessions.c.insight_count)
    )


@statement
def _select_newest(_dialect: DialectName) -> sa.Executable:
    return (
        sa.select(*_COLUMNS)
        .where(
            insights.c.session_id == sa.bindparam("session_id"),
            insights.c.category == sa.bindparam("category"),
            insights.c.key == sa.bindparam("key"),
        )
        .order_by(insights.c.revision.desc())
        .limit(sa.literal_column("1"))
    )


@statement
def _insert(_dialect: DialectName) -> sa.Executable:
    return sa.insert(insights)


@cache
def _select_page(all_revisions: bool) -> Statement:
    def build(_dialect: DialectName) -> sa.Executable:
        page = (
            sa.select(*_COLUMNS)
            .where(
                insights.c.session_id == sa.bindparam("session_id"),
                sa.tuple_(insights.c.position, insights.c.revision)
                > sa.tuple_(
                    sa.bindparam("after_position", type_=sa.Integer),
                    sa.bindparam("after_revision", type_=sa.Integer),
                ),
            )
            .order_by(insights.c.position, insights.c.revision)
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )
        if all_revisions:
            return page
        later = insights.alias("later")
        return page.where(
            ~sa.exists().where(
                later.c.session_id == insights.c.session_id,
                later.c.position == insights.c.position,
                later.c.revision > insights.c.revision,
            )
        )

    return Statement(build)


def _insight(row: Row) -> Insight:
    session_id, position, revision, category, key, value, severity, evidence = row[:8]
    resources, steps, sequences, create_time, update_time, actor = row[8:]
    return Insight(
        session_id,
        position,
        revision,
        NewInsight(
            category,
            key,
            value,
            Severity(severity),
            evidence,
            tuple(json.loads(resources)),
            tuple(json.loads(steps)),
            tuple(json.loads(sequences)),
        ),
        create_time,
        update_time,
        actor_from_text(actor),
    )


def _newest(session_id: str, category: str, key: str, connection: Connection) -> Insight | None:
    row = connection.one(_select_newest, session_id=session_id, category=category, key=key)
    return None if row is None else _insight(row)


def save(
    session_id: str,
    content: NewInsight,
    actor: Actor,
    request: RequestKey | None,
    connection: Connection,
) -> Insight:
    """Save a finding, as a further revision if its category and key are known and it differs.

    Raises `SessionNotFound`, `SessionNotRunning`, `ExecutionNotFound`, `RequestIdReused`.
    """
    if requests.earlier(connection, request) is not None:
        known = _newest(session_id, content.category, content.key, connection)
        assert known is not None  # noqa: S101 - the request made it
        return known
    execution_count, insight_count, time = touch(session_id, connection)
    for sequence in content.execution_sequences:
        if sequence > execution_count:
            raise ExecutionNotFound(session_id, sequence)
    known = _newest(session_id, content.category, content.key, connection)
    if known is not None and known.content == content:
        requests.remember(connection, request, str(known.position))
        return known
    if known is None:
        connection.one(_count_one_more, session_id=session_id)
        insight = Insight(session_id, insight_count + 1, 1, content, time, time, actor)
    else:
        insight = known._replace(
            revision=known.revision + 1, content=content, update_time=time, actor=actor
        )
    _store(insight, connection)
    add_recorders(connection, [(session_id, actor)])
    requests.remember(connection, request, str(insight.position))
    return insight


def _store(insight: Insight, connection: Connection) -> None:
    content = insight.content
    connection.insert(
        _insert,
        [
            (
                insight.session_id,
                insight.position,
                insight.revision,
                content.category,
                content.key,
                content.value,
                content.severity,
                content.evidence,
                json.dumps(content.affected_resources),
                json.dumps(content.remediation_steps),
                json.dumps(content.execution_sequences),
                insight.create_time,
                insight.update_time,
                str(insight.actor),
            )
        ],
    )


def page(
    session_id: str,
    after: tuple[int, int],
    limit: int,
    all_revisions: bool,
    connection: Connection,
) -> list[Insight]:
    """Up to `limit` insights behind (position, revision), in order of first save, then revision.

    Raises `SessionNotFound` if there are none and no session.
    """
    rows = connection.all(
        _select_page(all_revisions),
        session_id=session_id,
        after_position=after[0],
        after_revision=after[1],
        limit=limit,
    )
    if not rows:
        require(session_id, connection)
    return [_insight(row) for row in rows]
