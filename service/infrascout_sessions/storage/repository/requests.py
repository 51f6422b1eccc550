"""Writes that may be repeated (the contract's "Retries").

A write looks here before it refuses anything for the state it finds, and leaves what came of it in
the same transaction. A refused write leaves nothing.
"""

from collections.abc import Mapping, Sequence
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


_OF = {
    name: sa.bindparam(f"request_{name}", type_=sa.Text)
    for name in ("session_id", "rpc", "actor", "request_id")
}

NOT_MADE_BEFORE = sa.not_(
    sa.exists(
        sa.select(sa.literal_column("1"))
        .select_from(requests)
        .where(*(requests.c[name] == parameter for name, parameter in _OF.items()))
    )
)
"""A condition for the statement that writes, which saves looking first: few requests are repeats.
Its parameters are `of(request)`."""


def of(request: RequestKey | None) -> Mapping[str, str | None]:
    """The parameters of `NOT_MADE_BEFORE`, which holds where there is no request."""
    if request is None:
        return _OF_NONE
    return {
        "request_session_id": request.session_id,
        "request_rpc": request.rpc,
        "request_actor": str(request.actor),
        "request_request_id": request.request_id,
    }


_OF_NONE: Mapping[str, None] = dict.fromkeys(parameter.key for parameter in _OF.values())


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
