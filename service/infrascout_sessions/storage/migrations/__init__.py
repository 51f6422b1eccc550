"""Brings a database to the revision this program knows, with Alembic."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

WITHOUT_TIME_LIMITS: Final = sa.text(
    "SELECT set_config(name, '0', :local) FROM unnest(ARRAY["
    "'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout']) name"
)
"""Lifts the limits that PostgreSQL has for a role: for a transaction (`local`) or for good."""

# Any number that nobody else locks.
_LOCK = 0x696E_6672_6173_0001


class DatabaseTooNewError(Exception):
    """A later version of the program has migrated the database."""

    def __init__(self, revision: str) -> None:
        super().__init__(
            f"the database is at revision {revision}, which this version does not know: "
            "run the version that migrated it, or a later one"
        )


class DatabaseTooOldError(Exception):
    """An earlier version of the program has migrated the database, or none."""

    def __init__(self, revision: str | None, head: str) -> None:
        super().__init__(
            f"the database is at {f'revision {revision}' if revision else 'no revision'}, and not "
            f"at {head}, this version's: run `infrascout-sessions migrate` on it first"
        )


def configuration() -> Config:
    """Alembic's settings, without a file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def migrate(connection: sa.Connection) -> None:
    """Apply, in the transaction of `connection`, every migration that the database lacks.

    Raises `DatabaseTooNewError`.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(WITHOUT_TIME_LIMITS, {"local": True})
        # Many replicas start at once: one migrates, the others wait and find it done.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    config = configuration()
    current, head = _revisions(connection, ScriptDirectory.from_config(config))
    if current == head:
        return
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def require_migrated(connection: sa.Connection) -> str:
    """The revision of this program, at which the database is.

    Raises `DatabaseTooNewError`, `DatabaseTooOldError`.
    """
    current, head = _revisions(connection, ScriptDirectory.from_config(configuration()))
    if current != head:
        raise DatabaseTooOldError(current, head)
    return head


def _revisions(connection: sa.Connection, script: ScriptDirectory) -> tuple[str | None, str]:
    """That of the database and that of this program. Raises `DatabaseTooNewError`."""
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in {
        revision.revision for revision in script.walk_revisions()
    }:
        raise DatabaseTooNewError(current)
    head = script.get_current_head()
    assert head is not None  # noqa: S101 - there are migrations
    return current, head
