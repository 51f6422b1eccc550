"""The command line: `infrascout-sessions serve`, `migrate`, `copy`, `demo`, `token`, `mcp`."""

import asyncio
import signal
import sys
from typing import Annotated, Literal

import typer

from infrascout_sessions import __version__, options, token_commands
from infrascout_sessions.config import Settings
from infrascout_sessions.mcp.command import mcp

app = typer.Typer(
    help="The system of record for InfraScout's assessment sessions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(token_commands.app, name="token")

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


def _without_workers(arguments: list[str]) -> list[str]:
    """What a worker is told: what `serve` was told, but not to have workers itself."""
    return [*arguments[arguments.index("serve") + 1 :], "--workers", "1"]


_READY = """\
InfraScout Sessions {version} serves on {address} ({transport}), sessions in {database}
Try it:
  {tool} {address} list
  {tool} -d '{{"agent_id": "ag_1", "hostname": "web-1"}}' {address} \\
    infrascout.sessions.v1.AgentService/RegisterAgent
The README goes on from there. Stop with Ctrl+C.
"""


@app.command()
def serve(
    listen: Annotated[
        str, typer.Option(envvar="INFRASCOUT_LISTEN", help="The address to listen on: HOST:PORT.")
    ] = _DEFAULTS.listen,
    database_url: DatabaseUrl = _DEFAULTS.database_url,
    database_connections: Annotated[
        int,
        typer.Option(
            envvar="INFRASCOUT_DATABASE_CONNECTIONS",
            min=2,
            help="PostgreSQL: how many connections a server opens at most.",
        ),
    ] = _DEFAULTS.database_connections,
    database_timeout: Annotated[
        float,
        typer.Option(
            envvar="INFRASCOUT_DATABASE_TIMEOUT",
            min=0.1,
            help="PostgreSQL: how many seconds to wait for a connection, a lock or a statement.",
        ),
    ] = _DEFAULTS.database_timeout_seconds,
    listen_database_url: Annotated[
        str,
        typer.Option(
            envvar="INFRASCOUT_LISTEN_DATABASE_URL",
            help="PostgreSQL: where to LISTEN for other replicas, if not through --database-url.",
        ),
    ] = _DEFAULTS.listen_database_url,
    pgbouncer: Annotated[
        bool,
        typer.Option(
            envvar="INFRASCOUT_PGBOUNCER",
            help="PostgreSQL: --database-url is a pooler between transactions.",
        ),
    ] = _DEFAULTS.pgbouncer,
    allow_unsafe_durability: Annotated[
        bool,
        typer.Option(
            envvar="INFRASCOUT_ALLOW_UNSAFE_DURABILITY",
            help="PostgreSQL: serve even if it may lose what it has acknowledged.",
        ),
    ] = _DEFAULTS.allow_unsafe_durability,
    workers: Annotated[
        int,
        typer.Option(
            envvar="INFRASCOUT_WORKERS",
            min=1,
            help="PostgreSQL: how many processes serve on the port.",
        ),
    ] = 1,
    share_port: Annotated[bool, typer.Option(hidden=True)] = _DEFAULTS.share_port,
    idle_timeout: Annotated[
        float,
        typer.Option(
            envvar="INFRASCOUT_IDLE_TIMEOUT",
            min=0,
            max=1_000_000_000,
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
    require_identity: options.RequireIdentity = _DEFAULTS.require_identity,
    plaintext: options.Plaintext = _DEFAULTS.plaintext,
    tls_cert: options.TLSCert = _DEFAULTS.tls_cert,
    tls_key: options.TLSKey = _DEFAULTS.tls_key,
    tls_client_ca: options.TLSClientCA = _DEFAULTS.tls_client_ca,
    mtls_roles: options.MTLSRoles = options.NOTHING,
    review_independence: options.ReviewIndependence = _DEFAULTS.review_independence,
    access_log: options.AccessLogFile = _DEFAULTS.access_log,
    oidc_issuer: options.OIDCIssuer = _DEFAULTS.oidc_issuer,
    oidc_audience: options.OIDCAudience = _DEFAULTS.oidc_audience,
    oidc_jwks_url: options.OIDCJWKSUrl = _DEFAULTS.oidc_jwks_url,
    oidc_algorithms: options.OIDCAlgorithms = options.DEFAULT_ALGORITHMS,
    oidc_subject_claim: options.OIDCSubjectClaim = _DEFAULTS.oidc_subject_claim,
    oidc_roles_claim: options.OIDCRolesClaim = _DEFAULTS.oidc_roles_claim,
    oidc_roles: options.OIDCRoles = options.NOTHING,
    oidc_human: options.OIDCHuman = options.NOTHING,
    maximum_calls: options.MaximumCalls = _DEFAULTS.maximum_calls,
    maximum_calls_of_caller: options.MaximumCallsOfCaller = _DEFAULTS.maximum_calls_of_caller,
    maximum_streams_of_caller: options.MaximumStreamsOfCaller = _DEFAULTS.maximum_streams_of_caller,
    maximum_failed_proofs: options.MaximumFailedProofs = _DEFAULTS.maximum_failed_proofs,
    maximum_metadata_bytes: options.MaximumMetadataBytes = _DEFAULTS.maximum_metadata_bytes,
    maximum_connection_age: options.MaximumConnectionAge = _DEFAULTS.maximum_connection_age_seconds,
    keepalive: options.Keepalive = _DEFAULTS.keepalive_seconds,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        typer.Option(
            envvar="INFRASCOUT_LOG_LEVEL", case_sensitive=False, help="The least that is logged."
        ),
    ] = "info",
) -> None:
    """Serve sessions until SIGTERM or SIGINT."""
    from infrascout_sessions import logs
    from infrascout_sessions.exposure import ExposureError
    from infrascout_sessions.interceptors.access_log import AccessLogError
    from infrascout_sessions.server import ListenError
    from infrascout_sessions.server import serve as serve_settings
    from infrascout_sessions.storage.database import DatabaseSetupError, require_replicas, shown
    from infrascout_sessions.workers import WorkersError
    from infrascout_sessions.workers import run as run_workers

    settings = Settings(
        listen=listen,
        share_port=share_port,
        database_connections=database_connections,
        database_timeout_seconds=database_timeout,
        listen_database_url=listen_database_url,
        pgbouncer=pgbouncer,
        allow_unsafe_durability=allow_unsafe_durability,
        database_url=database_url,
        idle_timeout_seconds=idle_timeout,
        shutdown_grace_seconds=shutdown_grace,
        maximum_waiting_writes=maximum_waiting_writes,
        maximum_followers=maximum_followers,
        maximum_output_bytes=maximum_output_bytes,
        metrics_listen=metrics_listen,
        require_identity=require_identity,
        plaintext=plaintext,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        mtls_roles=tuple(mtls_roles),
        review_independence=review_independence,
        access_log=access_log,
        oidc_issuer=oidc_issuer,
        oidc_audience=oidc_audience,
        oidc_jwks_url=oidc_jwks_url,
        oidc_algorithms=tuple(oidc_algorithms),
        oidc_subject_claim=oidc_subject_claim,
        oidc_roles_claim=oidc_roles_claim,
        oidc_roles=tuple(oidc_roles),
        oidc_human=tuple(oidc_human),
        maximum_calls=maximum_calls,
        maximum_calls_of_caller=maximum_calls_of_caller,
        maximum_streams_of_caller=maximum_streams_of_caller,
        maximum_failed_proofs=maximum_failed_proofs,
        maximum_metadata_bytes=maximum_metadata_bytes,
        maximum_connection_age_seconds=maximum_connection_age,
        keepalive_seconds=keepalive,
    )

    def ready(port: int) -> None:
        address = f"{listen.rpartition(':')[0]}:{port}" if port else listen
        database = shown(database_url)
        transport = "TLS" if tls_cert else "plaintext"
        typer.echo(
            _READY.format(
                version=__version__,
                address=address,
                transport=transport,
                database=database,
                tool="grpcurl" if tls_cert else "grpcurl -plaintext",
            )
        )
        sys.stdout.flush()

    logs.configure(log_level)
    try:
        if workers > 1:
            require_replicas(database_url, "--workers")
            code = asyncio.run(run_workers(workers, listen, _without_workers(sys.argv), ready))
            raise typer.Exit(code)
        asyncio.run(serve_settings(settings, ready))
    except (ListenError, DatabaseSetupError, ExposureError, AccessLogError, WorkersError) as error:
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
