"""The settings of a server."""

from dataclasses import dataclass

from infrascout_sessions.models import Independence


@dataclass(frozen=True)
class Settings:
    """What `serve` can be told; the command line documents each."""

    listen: str = "127.0.0.1:50051"
    share_port: bool = False
    database_url: str = "sqlite+aiosqlite:///data/sessions.db"
    database_connections: int = 10
    database_timeout_seconds: float = 5
    listen_database_url: str = ""
    pgbouncer: bool = False
    allow_unsafe_durability: bool = False
    idle_timeout_seconds: float = 7200
    shutdown_grace_seconds: float = 10
    maximum_waiting_writes: int = 10_000
    maximum_followers: int = 5000
    maximum_output_bytes: int = 64 * 1024 * 1024
    metrics_listen: str = ""

    # Who calls.
    require_identity: bool = False
    plaintext: bool = False
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    mtls_roles: tuple[str, ...] = ()
    review_independence: Independence = Independence.REQUIRED
    access_log: str = ""

    # JWTs of an identity provider; none are taken without an issuer.
    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_jwks_url: str = ""
    oidc_algorithms: tuple[str, ...] = ("RS256",)
    oidc_subject_claim: str = "sub"
    oidc_roles_claim: str = "roles"
    oidc_roles: tuple[str, ...] = ()
    oidc_human: tuple[str, ...] = ()

    # Bounds.
    maximum_calls: int = 20_000
    maximum_calls_of_caller: int = 10_000
    maximum_streams_of_caller: int = 6_000
    maximum_failed_proofs: float = 50
    maximum_metadata_bytes: int = 16 * 1024
    maximum_connection_age_seconds: float = 14_400
    keepalive_seconds: float = 60
