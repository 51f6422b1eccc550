"""`infrascout-sessions token …`: issues, lists and revokes bearer tokens, beside a server."""

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from infrascout_sessions.config import DatabaseUrl, Settings
from infrascout_sessions.models import ActorKind, Role, Token, system_clock
from infrascout_sessions.tokens import TokenError, issue

if TYPE_CHECKING:
    from infrascout_sessions.storage.statement import Connection

T = TypeVar("T")

app = typer.Typer(
    help="Issue, list and revoke bearer tokens; a server may run at the same time.",
    no_args_is_help=True,
)

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _run(database_url: str, work: "Callable[[Connection], T]", *, may_make: bool = False) -> T:
    from infrascout_sessions.storage.database import (
        DatabaseSetupError,
        missing_file,
        open_for_command,
    )

    async def run() -> "tuple[T, Path | None]":
        missing = missing_file(database_url)
        if missing and not may_make:
            raise DatabaseSetupError(f"there is no database {missing}")
        async with open_for_command(database_url, system_clock) as database:
            return await database.write(work), missing

    try:
        done, made = asyncio.run(run())
    except (DatabaseSetupError, TokenError) as error:
        raise _fail(error) from None
    if made:
        # A token is good only where the server looks for it.
        _say(f"made the database {made}: is it the server's?")
    return done


def _say(text: object) -> None:
    typer.echo(f"infrascout-sessions: {text}", err=True)


def _fail(error: Exception) -> typer.Exit:
    _say(error)
    return typer.Exit(1)


def _microseconds(text: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if found is None:
        raise typer.BadParameter("write a number and s, m, h or d, as in 90d or 12h")
    return int(found[1]) * _SECONDS[found[2]] * 1_000_000


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the caller is called on every record.")],
    role: Annotated[list[Role], typer.Option(help="What it may do; give it once for each role.")],
    human: Annotated[bool, typer.Option("--human", help="It is a person's.")] = False,
    service: Annotated[bool, typer.Option("--service", help="It is a program's.")] = False,
    expires_in: Annotated[
        str, typer.Option(help="How long it is valid, as in 90d, 12h, 30m; for ever if empty.")
    ] = "",
    database_url: DatabaseUrl = Settings.database_url,
) -> None:
    """Issue a token and print it, once and for all: only a digest is kept."""
    if human == service:
        raise typer.BadParameter("say whose it is: either --human or --service")
    expire_time = system_clock() + _microseconds(expires_in) if expires_in else None
    from infrascout_sessions.storage.repository import tokens

    try:
        token, new = issue(name, ActorKind.HUMAN if human else ActorKind.SERVICE, role, expire_time)
    except TokenError as error:
        raise _fail(error) from None
    _run(database_url, partial(tokens.create, new), may_make=True)
    typer.echo(token)


@app.command(name="list")
def list_tokens(database_url: DatabaseUrl = Settings.database_url) -> None:
    """List every token that was ever issued, without the token itself."""
    from infrascout_sessions.storage.repository import tokens

    now = system_clock()
    rows: list[tuple[str, ...]] = [
        ("NAME", "KIND", "ROLES", "STATE", "CREATED", "EXPIRES", "LAST USED"),
        *(_row(token, now) for token in _run(database_url, tokens.every)),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())


def _row(token: Token, now: int) -> tuple[str, ...]:
    if token.revoke_time is not None:
        state = "revoked"
    elif token.expire_time is not None and token.expire_time <= now:
        state = "expired"
    else:
        state = "active"
    times = (token.create_time, token.expire_time, token.last_use_time)
    return (token.name, token.kind, ",".join(sorted(token.roles)), state, *map(_time, times))


def _time(time: int | None) -> str:
    if time is None:
        return "-"
    return datetime.fromtimestamp(time // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%MZ")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Whose token no server takes any more.")],
    database_url: DatabaseUrl = Settings.database_url,
) -> None:
    """Revoke a caller's token; every server refuses it within 5 seconds."""
    from infrascout_sessions.storage.repository import tokens

    _run(database_url, partial(tokens.revoke, name))
    typer.echo(f"The token of {name} is revoked.")
