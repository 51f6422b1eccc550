"""Agents: registered, updated, listed."""

import json
from collections.abc import Sequence
from functools import cache

import sqlalchemy as sa

from infrascout_sessions.errors import AgentNotFound
from infrascout_sessions.models import Agent, RequestKey
from infrascout_sessions.storage.repository import requests
from infrascout_sessions.storage.schema import agents
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    Row,
    ServerTime,
    Statement,
    insert_for,
    server_time_after,
    statement,
)
from infrascout_sessions.storage.text import ascii_lower

_COLUMNS = (
    agents.c.agent_id,
    agents.c.hostname,
    agents.c.os,
    agents.c.capabilities,
    agents.c.register_time,
    agents.c.update_time,
)


@statement
def _upsert(dialect: DialectName) -> sa.Executable:
    new = insert_for[dialect](agents).values(
        agent_id=sa.bindparam("agent_id"),
        hostname=sa.bindparam("hostname"),
        hostname_lower=sa.bindparam("hostname_lower"),
        os=sa.bindparam("os"),
        capabilities=sa.bindparam("capabilities"),
        register_time=ServerTime(),
        update_time=ServerTime(),
    )
    changed = {
        name: new.excluded[name] for name in ("hostname", "hostname_lower", "os", "capabilities")
    }
    changed["update_time"] = server_time_after(agents.c.update_time)
    return new.on_conflict_do_update(  # type: ignore[no-any-return]
        index_elements=[agents.c.agent_id], set_=changed
    ).returning(*_COLUMNS)


@statement
def _select(_dialect: DialectName) -> sa.Executable:
    return sa.select(*_COLUMNS).where(agents.c.agent_id == sa.bindparam("agent_id"))


@cache
def _select_page(by_hostname: bool) -> Statement:
    def build(_dialect: DialectName) -> sa.Executable:
        page = (
            sa.select(*_COLUMNS)
            .where(agents.c.agent_id > sa.bindparam("after"))
            .order_by(agents.c.agent_id)
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )
        if by_hostname:
            page = page.where(agents.c.hostname_lower == sa.bindparam("hostname_lower"))
        return page

    return Statement(build)


def _agent(row: Row) -> Agent:
    agent_id, hostname, os, capabilities, register_time, update_time = row
    return Agent(
        agent_id, hostname, os, tuple(json.loads(capabilities)), register_time, update_time
    )


def register(
    agent_id: str,
    hostname: str,
    os: str,
    capabilities: Sequence[str],
    request: RequestKey | None,
    connection: Connection,
) -> Agent:
    """Register an agent or replace what is known of it.

    Raises `RequestIdReused`.
    """
    if requests.earlier(connection, request) is not None:
        return get(agent_id, connection)
    row = connection.one(
        _upsert,
        agent_id=agent_id,
        hostname=hostname,
        hostname_lower=ascii_lower(hostname),
        os=os,
        capabilities=json.dumps(list(capabilities)),
    )
    assert row is not None  # noqa: S101 - an upsert returns its row
    requests.remember(connection, request, agent_id)
    return _agent(row)


def get(agent_id: str, connection: Connection) -> Agent:
    """Raises `AgentNotFound`."""
    row = connection.one(_select, agent_id=agent_id)
    if row is None:
        raise AgentNotFound(agent_id)
    return _agent(row)


def page(hostname: str | None, after: str, limit: int, connection: Connection) -> list[Agent]:
    """Up to `limit` agents whose ids follow `after`, by id; of one host if `hostname` is given."""
    rows = connection.all(
        _select_page(hostname is not None),
        after=after,
        limit=limit,
        **({} if hostname is None else {"hostname_lower": ascii_lower(hostname)}),
    )
    return [_agent(row) for row in rows]
