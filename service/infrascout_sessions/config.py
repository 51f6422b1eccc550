"""The settings of a server, as a table; the options of `serve` are made of it."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import typer

from infrascout_sessions.models import Independence

# What gRPC and PostgreSQL take at most, of which they count times in milliseconds: 24 days.
_MAXIMUM_INT: Final = 2**31 - 1
_MAXIMUM_SECONDS: Final = _MAXIMUM_INT // 1000


def _option(name: str, description: str, **more: Any) -> Any:
    """An option, and the environment variable of its name."""
    variable = name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    return typer.Option(name, envvar=f"INFRASCOUT_{variable}", help=description, **more)


DatabaseUrl = Annotated[
    str,
    _option(
        "--database-url",
        "Where sessions are kept: a SQLAlchemy async URL, sqlite+aiosqlite:///PATH.",
    ),
]


@dataclass(frozen=True)
class Settings:
    """What `serve` can be told. A tuple's option may be given several times."""

    listen: Annotated[
        str,
        _option("--listen", "The address to listen on: HOST:PORT or unix:PATH."),
    ] = "127.0.0.1:50051"

    # Where sessions are kept.
    database_url: DatabaseUrl = "sqlite+aiosqlite:///data/sessions.db"
    database_connections: Annotated[
        int,
        _option(
            "--database-connections",
            "PostgreSQL: how many connections a server opens at most.",
            min=2,
            max=10_000,
        ),
    ] = 10
    database_timeout_seconds: Annotated[
        float,
        _option(
            "--database-timeout",
            "PostgreSQL: how many seconds to wait for a connection, a lock or a statement.",
            min=0.1,
            max=_MAXIMUM_SECONDS,
        ),
    ] = 5
    listen_database_url: Annotated[
        str,
        _option(
            "--listen-database-url",
            "PostgreSQL: where to LISTEN for other replicas, if not through --database-url.",
        ),
    ] = ""
    pgbouncer: Annotated[
        bool,
        _option(
            "--pgbouncer/--no-pgbouncer",
            "PostgreSQL: --database-url is a pooler between transactions.",
        ),
    ] = False
    allow_unsafe_durability: Annotated[
        bool,
        _option(
            "--allow-unsafe-durability/--no-allow-unsafe-durability",
            "PostgreSQL: serve even if it may lose what it has acknowledged.",
        ),
    ] = False

    # How the server runs.
    workers: Annotated[
        int,
        _option("--workers", "PostgreSQL: how many processes serve on the port.", min=1, max=1000),
    ] = 1
    share_port: Annotated[
        bool,
        # A worker is told this, and nobody else.
        typer.Option("--share-port", hidden=True),
    ] = False
    idle_timeout_seconds: Annotated[
        float,
        _option(
            "--idle-timeout",
            "Interrupt a running session without a write for so many seconds; 0 for never.",
            min=0,
            max=1_000_000_000,
        ),
    ] = 7200
    shutdown_grace_seconds: Annotated[
        float,
        _option(
            "--shutdown-grace",
            "How many seconds calls under way get to end when the server is told to stop.",
            min=0,
            max=_MAXIMUM_SECONDS,
        ),
    ] = 10
    maximum_waiting_writes: Annotated[
        int,
        _option(
            "--maximum-waiting-writes",
            "How many writes may wait for the database; further ones are OVERLOADED.",
            min=1,
        ),
    ] = 10_000
    maximum_followers: Annotated[
        int,
        _option(
            "--maximum-followers",
            "How many may follow executions at once; further ones are OVERLOADED.",
            min=0,
        ),
    ] = 5000
    maximum_output_bytes: Annotated[
        int,
        _option(
            "--maximum-output-bytes",
            "How much an execution's outputs may have, both together.",
            min=1,
            max=_MAXIMUM_INT,
        ),
    ] = 64 * 1024 * 1024
    metrics_listen: Annotated[
        str,
        _option(
            "--metrics-listen",
            "Serve Prometheus metrics over HTTP on HOST:PORT, those of worker N on PORT + N - 1; "
            "not at all if empty.",
        ),
    ] = ""

    # Who calls.
    require_identity: Annotated[
        bool,
        _option(
            "--require-identity",
            "Refuse callers without a proof on a loopback address, too.",
        ),
    ] = False
    plaintext: Annotated[
        bool,
        _option(
            "--plaintext",
            "Listen without TLS on an address that others reach, behind a mesh that encrypts. "
            "Gives up that nobody on the way reads or changes what is sent, tokens included.",
        ),
    ] = False
    tls_cert: Annotated[
        str,
        _option(
            "--tls-cert",
            "Serve TLS with the certificate chain in this PEM file; taken anew when it changes.",
        ),
    ] = ""
    tls_key: Annotated[
        str,
        _option("--tls-key", "The PEM file of the certificate's key."),
    ] = ""
    tls_client_ca: Annotated[
        str,
        _option(
            "--tls-client-ca",
            "Take only clients with a certificate of the CAs in this PEM file.",
        ),
    ] = ""
    mtls_roles: Annotated[
        tuple[str, ...],
        _option(
            "--mtls-role",
            "The roles of a client certificate by its SPIFFE id or else its common name; "
            "`*` for all that are not named.",
            metavar="SUBJECT=ROLE,ROLE",
        ),
    ] = ()
    review_independence: Annotated[
        Independence,
        _option(
            "--review-independence",
            "Whether a reviewer must have had no part in the session; reviews say which.",
        ),
    ] = Independence.REQUIRED
    access_log: Annotated[
        str,
        _option(
            "--access-log",
            "Write who did what to this file, which may be rotated, or to stderr if `-`; "
            "the log says it if empty.",
            metavar="FILE",
        ),
    ] = ""

    # JWTs of an identity provider; none are taken without an issuer.
    oidc_issuer: Annotated[
        str,
        _option(
            "--oidc-issuer",
            "Take JWTs of this issuer, an https URL; needs the extra `oidc`.",
        ),
    ] = ""
    oidc_audience: Annotated[
        str,
        _option("--oidc-audience", "The audience that JWTs must be for."),
    ] = ""
    oidc_jwks_url: Annotated[
        str,
        _option(
            "--oidc-jwks-url",
            "Where the issuer's keys are; found out from the issuer if empty.",
        ),
    ] = ""
    oidc_algorithms: Annotated[
        tuple[str, ...],
        _option("--oidc-algorithm", "An algorithm that JWTs may be signed with."),
    ] = ("RS256",)
    oidc_subject_claim: Annotated[
        str,
        _option("--oidc-subject-claim", "The claim that is the caller's name."),
    ] = "sub"
    oidc_roles_claim: Annotated[
        str,
        _option(
            "--oidc-roles-claim",
            "The claim that holds roles or groups; dots lead into it: realm_access.roles.",
        ),
    ] = "roles"
    oidc_roles: Annotated[
        tuple[str, ...],
        _option(
            "--oidc-role",
            "The roles that a value of that claim gives.",
            metavar="VALUE=ROLE,ROLE",
        ),
    ] = ()
    oidc_human: Annotated[
        tuple[str, ...],
        _option(
            "--oidc-human",
            "What a JWT must hold to be a human's; all of them if several. "
            "Without any, every JWT is a service's.",
            metavar="CLAIM[=VALUE]",
        ),
    ] = ()

    # Bounds.
    maximum_calls: Annotated[
        int,
        _option("--maximum-calls", "How many calls may be under way at once.", min=1),
    ] = 20_000
    maximum_calls_of_caller: Annotated[
        int,
        _option("--maximum-calls-of-caller", "How many of them may be one caller's.", min=1),
    ] = 10_000
    maximum_streams_of_caller: Annotated[
        int,
        _option("--maximum-streams-of-caller", "How many of those may be streams.", min=1),
    ] = 6_000
    maximum_failed_proofs: Annotated[
        float,
        _option(
            "--maximum-failed-proofs",
            "How many proofs from one address may fail a second; further ones are refused late.",
            min=1,
            max=1_000_000,
        ),
    ] = 50
    maximum_metadata_bytes: Annotated[
        int,
        _option(
            "--maximum-metadata-bytes",
            "How large the metadata of a call may be.",
            min=1024,
            max=_MAXIMUM_INT,
        ),
    ] = 16 * 1024
    maximum_connection_age_seconds: Annotated[
        float,
        _option(
            "--maximum-connection-age",
            "Close connections that are so many seconds old, five minutes after they were told; "
            "0 for never.",
            min=0,
            max=_MAXIMUM_SECONDS,
        ),
    ] = 14_400
    keepalive_seconds: Annotated[
        float,
        _option(
            "--keepalive",
            "Ask after a silent connection's other end every so many seconds.",
            min=1,
            max=_MAXIMUM_SECONDS,
        ),
    ] = 60

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _option("--log-level", "The least that is logged.", case_sensitive=False),
    ] = "info"
