"""The command line: `infrascout-sessions serve`, `migrate`, `copy`, `demo`."""

import asyncio
import sys
from typing import Annotated

import typer

from infrascout_sessions import __version__
from infrascout_sessions.config import Settings

app = typer.Typer(
    help="The system of record for InfraScout's assessment sessions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_DEFAULTS = Settings()

DatabaseUrl = Annotated[
    str,
    typer.Option(
        envvar="INFRASCOUT_DATABASE_URL",
        help="Where sessions are kept: a SQLAlchemy async URL, sqlite+aiosqlite:///PATH.",
    ),
]


def _fail(error: Exception) -> typer.Exit:
    typer.echo(f"infrascout-sessions: {error}", err=True)
    return typer.Exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


_READY = """\
InfraScout Sessions {version} serves on {address} (plaintext), sessions in {database}
Try it:
  grpcurl -plaintext {address} list
  grpcurl -plaintext -d '{{"agent_id": "ag_1", "hostname": "web-1"}}' {address} \\
    infrascout.sessions.v1.AgentService/RegisterAgent
The README goes on from there. Stop with Ctrl+C.
"""


@app.command()
def serve(
    listen: Annotated[
        str, typer.Option(envvar="INFRASCOUT_LISTEN", help="The address to listen on: HOST:PORT.")
    ] = _DEFAULTS.listen,
    database_url: DatabaseUrl = _DEFAULTS.database_url,
    idle_timeout: Annotated[
        float,
        typer.Option(
            envvar="INFRASCOUT_IDLE_TIMEOUT",
            min=0,
            help="Interrupt a running session without a write for so many seconds; 0 for never.",
        ),
    ] = _DEFAULTS.idle_timeout_seconds,
    shutdown_grace: Annotated[
        float,
        typer.Option(
            envvar="INFRASCOUT_SHUTDOWN_GRACE",
            min=0,
            help="How many seconds calls under way get to end when the server is told to stop.",
        ),
    ] = _DEFAULTS.shutdown_grace_seconds,
    maximum_waiting_writes: Annotated[
        int,
        typer.Option(
            envvar="INFRASCOUT_MAXIMUM_WAITING_WRITES",
            min=1,
            help="How many writes may wait for the database; further ones are OVERLOADED.",
        ),
    ] = _DEFAULTS.maximum_waiting_writes,
    maximum_followers: Annotated[
        int,
        typer.Option(
            envvar="INFRASCOUT_MAXIMUM_FOLLOWERS",
            min=0,
            help="How many may follow executions at once; further ones are OVERLOADED.",
        ),
    ] = _DEFAULTS.maximum_followers,
    maximum_output_bytes: Annotated[
        int,
        typer.Option(
            envvar="INFRASCOUT_MAXIMUM_OUTPUT_BYTES",
            min=1,
            help="How much an execution's outputs may have, both together.",
        ),
    ] = _DEFAULTS.maximum_output_bytes,
    metrics_listen: Annotated[
        str,
        typer.Option(
            envvar="INFRASCOUT_METRICS_LISTEN",
            help="Serve Prometheus metrics over HTTP on HOST:PORT; not at all if empty.",
        ),
    ] = _DEFAULTS.metrics_listen,
    log_level: Annotated[
        str,
        typer.Option(envvar="INFRASCOUT_LOG_LEVEL", help="debug, info, warning or error."),
    ] = "info",
) -> None:
    """Serve sessions until SIGTERM or SIGINT."""
    from infrascout_sessions import logs
    from infrascout_sessions.server import ListenError
    from infrascout_sessions.server import serve as serve_settings
    from infrascout_sessions.storage.database import DatabaseSetupError

    settings = Settings(
        listen=listen,
        database_url=database_url,
        idle_timeout_seconds=idle_timeout,
        shutdown_grace_seconds=shutdown_grace,
        maximum_waiting_writes=maximum_waiting_writes,
        maximum_followers=maximum_followers,
        maximum_output_bytes=maximum_output_bytes,
        metrics_listen=metrics_listen,
    )

    def ready(port: int) -> None:
        address = f"{listen.rpartition(':')[0]}:{port}" if port else listen
        database = database_url.partition(":///")[2]
        typer.echo(_READY.format(version=__version__, address=address, database=database))
        sys.stdout.flush()

    logs.configure(log_level)
    try:
        asyncio.run(serve_settings(settings, ready))
    except (ListenError, DatabaseSetupError) as error:
        raise _fail(error) from None


@app.command()
def migrate(database_url: DatabaseUrl = _DEFAULTS.database_url) -> None:
    """Bring the database to this version; a server does so by itself when it starts."""
    from infrascout_sessions.storage.database import DatabaseSetupError, migrate_database

    try:
        asyncio.run(migrate_database(database_url))
    except DatabaseSetupError as error:
        raise _fail(error) from None
    typer.echo("The database is up to date.")


@app.command()
def copy(
    from_url: Annotated[
        str,
        typer.Option("--from", help="The database to copy, which nobody may write in meanwhile."),
    ],
    to_url: Annotated[
        str, typer.Option("--to", help="An empty database, or a copy of --from that was stopped.")
    ],
) -> None:
    """Copy everything from one database to another, and verify the copy.

    Stopped at any point, killed even, it goes on when it is run again.
    """
    from rich.console import Console

    from infrascout_sessions.progress import shown
    from infrascout_sessions.storage.database import DatabaseSetupError, copy_database

    try:
        with shown(Console()) as report:
            tables = asyncio.run(copy_database(from_url, to_url, report))
    except DatabaseSetupError as error:
        raise _fail(error) from None
    for table in tables:
        typer.echo(f"{table.table_name:<20} {table.rows:>13,} rows  sha256 {table.sha256}")
    typer.echo("Copied and verified: counts and digests are the same on both sides.")


def main() -> None:
    """The program."""
    app()
