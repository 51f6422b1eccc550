"""The settings of a server."""

from dataclasses import dataclass


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
