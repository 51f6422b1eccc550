"""Bearer tokens, and what was asked of a reviewer's independence."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the tokens; add a column to sessions."""
    op.add_column("sessions", sa.Column("review_independence", TEXT, nullable=True))
    op.create_table(
        "tokens",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("roles", TEXT, nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("expire_time", sa.BigInteger(), nullable=True),
        sa.Column("last_use_time", sa.BigInteger(), nullable=True),
        sa.Column("revoke_time", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("kind IN ('human', 'service')", name=op.f("tokens_kind_is_known")),
        sa.CheckConstraint(
            "kind = 'human' OR roles NOT LIKE '%reviewer%'", name=op.f("tokens_reviewer_is_human")
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("tokens_pkey")),
    )
    active = sa.text("revoke_time IS NULL")
    op.create_index(
        "tokens_one_active_per_name",
        "tokens",
        ["name"],
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    )
