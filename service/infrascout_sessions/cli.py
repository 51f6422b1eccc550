"""The command line: `infrascout-sessions serve`, `migrate`, `copy`, `demo`, `token`, `mcp`."""

import asyncio
import signal
import sys
from typing import Annotated

import typer

from infrascout_sessions import __version__, options, token_commands
from infrascout_sessions.config import DatabaseUrl, Settings
from infrascout_sessions.exposure import ExposureError, takes_local
from infrascout_sessions.mcp.command import mcp

app = typer.Typer(
    help="The system of record for InfraScout's assessment sessions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(token_commands.app, name="token")


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


def _without_workers(arguments: list[str]) -> list[str]:
    """What a worker is told: what `serve` was told, but not to have workers itself."""
    return [*arguments[arguments.index("serve") + 1 :], "--workers", "1"]


_READY = """\
InfraScout Sessions {version} serves on {address} ({transport}), sessions in {database}
Try it in another terminal:
{commands}
The README goes on from there. Stop with Ctrl+C.
"""
_OPEN_TO_ALL_HERE = """\
  {program} demo --address {address}
  grpcurl -plaintext {address} list
  grpcurl -plaintext -d '{{"agent_id": "ag_1", "hostname": "web-1"}}' {address} \\
    infrascout.sessions.v1.AgentService/RegisterAgent"""
# What else there is takes a proof.
_REFLECTION = "  {tool} {address} list"


def _ready(settings: Settings, address: str, database: str) -> str:
    """What is said once the server answers."""
    tls = bool(settings.tls_cert)
    program = sys.argv[0] if sys.argv[0].endswith("infrascout-sessions") else "infrascout-sessions"
    commands = _OPEN_TO_ALL_HERE if takes_local(settings) and not tls else _REFLECTION
    return _READY.format(
        version=__version__,
        address=address,
        transport="TLS" if tls else "plaintext",
        database=database,
        commands=commands.format(
            program=program, address=address, tool="grpcurl" if tls else "grpcurl -plaintext"
        ),
    )


@app.command()
@options.of_settings
def serve(settings: Settings) -> None:
    """Serve sessions until SIGTERM or SIGINT."""
    from infrascout_sessions import event_loop, logs
    from infrascout_sessions.interceptors.access_log import AccessLogError
    from infrascout_sessions.server import ListenError
    from infrascout_sessions.server import serve as serve_settings
    from infrascout_sessions.storage.database import DatabaseSetupError, require_replicas, shown
    from infrascout_sessions.workers import run as run_workers

    def ready(port: int) -> None:
        kind, _, _ = settings.listen.rpartition(":")
        address = settings.listen if kind == "unix" else f"{kind}:{port}"
        try:
            typer.echo(_ready(settings, address, shown(settings.database_url)))
        except OSError:
            # Whoever read it has gone, or its disk is full; that is no reason to serve nobody.
            sys.stdout = None

    logs.configure(settings.log_level)
    try:
        if settings.workers > 1:
            require_replicas(settings.database_url, "--workers")
            arguments = _without_workers(sys.argv)
            raise typer.Exit(asyncio.run(run_workers(settings, arguments, ready)))
        event_loop.run(serve_settings(settings, ready))
    except (ListenError, DatabaseSetupError, ExposureError, AccessLogError) as error:
        raise _fail(error) from None


@app.command()
def migrate(database_url: DatabaseUrl = Settings.database_url) -> None:
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


@app.command()
def demo(
    address: Annotated[
        str,
        typer.Option(help="Record at this server, HOST:PORT; at a temporary one if empty."),
    ] = "",
) -> None:
    """Record a session of this host for real, and print it."""
    from infrascout_sessions.demo.run import DemoError, run

    # Its server and its commands do not outlive it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        asyncio.run(run(address))
    except DemoError as error:
        raise _fail(error) from None


app.command()(mcp)


def main() -> None:
    """The program."""
    app()
