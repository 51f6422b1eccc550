"""Brings a database to the revision this program knows, with Alembic."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

# Any number that nobody else locks.
_LOCK = 0x696E_6672_6173_0001


class DatabaseTooNewError(Exception):
    """A later version of the program has migrated the database."""

    def __init__(self, revision: str) -> None:
        super().__init__(
            f"the database is at revision {revision}, which this version does not know: "
            "run the version that migrated it, or a later one"
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
        # Many replicas start at once: one migrates, the others wait and find it done.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    config = configuration()
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == script.get_current_head():
        return
    if current is not None and current not in {
        revision.revision for revision in script.walk_revisions()
    }:
        raise DatabaseTooNewError(current)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
