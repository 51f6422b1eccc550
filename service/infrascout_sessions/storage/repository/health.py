"""Whether the database answers."""

import sqlalchemy as sa

from infrascout_sessions.storage.schema import sessions
from infrascout_sessions.storage.statement import Connection, DialectName, statement


@statement
def _select(_dialect: DialectName) -> sa.Executable:
    return sa.select(sa.literal_column("1")).select_from(sessions).limit(sa.literal_column("1"))


def ask(connection: Connection) -> None:
    """Read the sessions table; raises if that cannot be done."""
    connection.all(_select)
