"""Writes that may be repeated (the contract's "Retries").

A write looks here first, before it checks any state, and leaves what came of it in the same
transaction. A refused write leaves nothing.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from infrascout_sessions.errors import RequestIdReused
from infrascout_sessions.models import RequestKey
from infrascout_sessions.storage.schema import requests
from infrascout_sessions.storage.statement import Connection, DialectName, statement


@statement
def _select(_dialect: DialectName) -> sa.Executable:
    return sa.select(requests.c.digest, requests.c.resource).where(
        requests.c.session_id == sa.bindparam("session_id"),
        requests.c.rpc == sa.bindparam("rpc"),
        requests.c.actor == sa.bindparam("actor"),
        requests.c.request_id == sa.bindparam("request_id"),
    )


@statement
def _insert(_dialect: DialectName) -> sa.Executable:
    return sa.insert(requests)


def earlier(connection: Connection, request: RequestKey | None) -> str | None:
    """The resource that the same request made before, or None.

    Raises `RequestIdReused` if the request then said something else.
    """
    if request is None:
        return None
    row = connection.one(
        _select,
        session_id=request.session_id,
        rpc=request.rpc,
        actor=str(request.actor),
        request_id=request.request_id,
    )
    if row is None:
        return None
    digest, resource = row
    if digest != request.digest:
        raise RequestIdReused(request.request_id)
    return str(resource)


def _row(request: RequestKey, resource: str) -> tuple[Any, ...]:
    return (
        request.session_id,
        request.rpc,
        str(request.actor),
        request.request_id,
        request.digest,
        resource,
    )


def remember(connection: Connection, request: RequestKey | None, resource: str) -> None:
    """Keep what came of a request, if it may be repeated."""
    if request is not None:
        remember_all(connection, [(request, resource)])


def remember_all(connection: Connection, made: Sequence[tuple[RequestKey, str]]) -> None:
    """Keep what came of several requests; raises the database's own error if one is known."""
    connection.insert(_insert, [_row(request, resource) for request, resource in made])
