"""Executions that are begun before they run."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Index those whose end is still to come."""
    unfinished = sa.text("finish_record_time IS NULL")
    op.create_index(
        "executions_unfinished",
        "executions",
        ["session_id", "sequence"],
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )
