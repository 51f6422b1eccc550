"""Bearer tokens: issued, looked up by their digest, noted as used, revoked. Never removed."""

import json
from collections.abc import Iterable, Sequence
from hmac import compare_digest

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from infrascout_sessions.models import ActorKind, NewToken, Role, Token
from infrascout_sessions.storage.schema import tokens
from infrascout_sessions.storage.statement import (
    Connection,
    DialectName,
    Row,
    ServerTime,
    insert_for,
    statement,
)
from infrascout_sessions.tokens import TokenError

_COLUMNS = tuple(tokens.c[name] for name in Token._fields)


def _given(name: str) -> sa.BindParameter[str]:
    return sa.bindparam(name, type_=sa.Text)


@statement
def _insert(dialect: DialectName) -> sa.Executable:
    return (  # type: ignore[no-any-return]
        insert_for[dialect](tokens)
        .values(
            digest=sa.bindparam("digest", type_=sa.LargeBinary),
            name=_given("name"),
            kind=_given("kind"),
            roles=_given("roles"),
            create_time=ServerTime(),
            expire_time=sa.bindparam("expire_time", type_=sa.BigInteger),
        )
        .on_conflict_do_nothing()
        .returning(tokens.c.create_time)
    )


@statement
def _select_other_kind(_dialect: DialectName) -> sa.Executable:
    return (
        sa.select(tokens.c.kind)
        .where(tokens.c.name == _given("name"), tokens.c.kind != _given("kind"))
        .limit(sa.literal_column("1"))
    )


@statement
def _select(_dialect: DialectName) -> sa.Executable:
    return sa.select(*_COLUMNS).where(
        tokens.c.digest == sa.bindparam("digest", type_=sa.LargeBinary)
    )


@statement
def _select_several(_dialect: DialectName) -> sa.Executable:
    wanted = sa.func.any(sa.bindparam("digests", type_=ARRAY(sa.LargeBinary)))
    return sa.select(*_COLUMNS).where(tokens.c.digest == wanted)


@statement
def _select_all(_dialect: DialectName) -> sa.Executable:
    return sa.select(*_COLUMNS).order_by(tokens.c.name, tokens.c.create_time, tokens.c.digest)


@statement
def _revoke(_dialect: DialectName) -> sa.Executable:
    return (
        sa.update(tokens)
        .where(tokens.c.name == _given("of_name"), sa.text("revoke_time IS NULL"))
        .values(revoke_time=ServerTime())
        .returning(*_COLUMNS)
    )


@statement
def _note_use(_dialect: DialectName) -> sa.Executable:
    time = sa.bindparam("use_time", type_=sa.BigInteger)
    return (
        sa.update(tokens)
        .where(
            tokens.c.digest == sa.bindparam("of_digest", type_=sa.LargeBinary),
            # Replicas note the same token, in any order.
            sa.func.coalesce(tokens.c.last_use_time, sa.literal_column("0")) < time,
        )
        .values(last_use_time=time)
        .returning(tokens.c.name)
    )


def _token(row: Row) -> Token:
    digest, name, kind, roles, *times = row
    return Token(
        bytes(digest),
        name,
        ActorKind(kind),
        frozenset(Role(role) for role in json.loads(roles)),
        *times,
    )


def create(new: NewToken, connection: Connection) -> None:
    """Issue a token. Its name is that of one caller for good, of one kind.

    Raises `TokenError` if the name has an active token, or belongs to a caller of the other kind.
    """
    row = connection.one(
        _insert,
        digest=new.digest,
        name=new.name,
        kind=new.kind.value,
        roles=json.dumps(sorted(new.roles)),
        expire_time=new.expire_time,
    )
    if row is None:
        raise TokenError(
            f"{new.name} has a token that is not revoked: `token revoke {new.name}` first, "
            "also if it has expired, or choose another name"
        )
    other = connection.one(_select_other_kind, name=new.name, kind=new.kind.value)
    if other is not None:
        raise TokenError(
            f"{new.name} is on record as a {other[0]} and stays one: choose another name"
        )


def find(digest: bytes, connection: Connection) -> Token | None:
    """The token with this digest, revoked or expired as it may be."""
    row = connection.one(_select, digest=digest)
    # The index has compared already; this takes the same time for every digest.
    return _token(row) if row is not None and compare_digest(bytes(row[0]), digest) else None


def find_several(digests: Sequence[bytes], connection: Connection) -> dict[bytes, Token]:
    """Those of the tokens that exist, by digest; on PostgreSQL in one round trip."""
    if connection.dialect == "postgresql":
        rows = connection.all(_select_several, digests=digests)
        return {token.digest: token for token in map(_token, rows)}
    found = {digest: find(digest, connection) for digest in digests}
    return {digest: token for digest, token in found.items() if token is not None}


def every(connection: Connection) -> list[Token]:
    """Every token ever issued, by name, oldest first."""
    return [_token(row) for row in connection.all(_select_all)]


def revoke(name: str, connection: Connection) -> Token:
    """Revoke the active token of a caller.

    Raises `TokenError` if there is none.
    """
    row = connection.one(_revoke, of_name=name)
    if row is None:
        raise TokenError(f"{name} has no active token: `token list` shows those there are")
    return _token(row)


def note_uses(uses: Iterable[tuple[bytes, int]], connection: Connection) -> None:
    """Keep when tokens were last used: pairs of a digest and a time."""
    # In order, so that no two replicas wait for each other.
    for digest, time in sorted(uses):
        connection.one(_note_use, of_digest=digest, use_time=time)
