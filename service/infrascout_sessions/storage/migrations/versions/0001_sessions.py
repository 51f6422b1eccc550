"""Agents, sessions, executions, outputs and insights."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "agents",
        sa.Column("agent_id", TEXT, nullable=False),
        sa.Column("hostname", TEXT, nullable=False),
        sa.Column("hostname_lower", TEXT, nullable=False),
        sa.Column("os", TEXT, nullable=False),
        sa.Column("capabilities", TEXT, nullable=False),
        sa.Column("register_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name=op.f("agents_pkey")),
    )
    op.create_index("agents_by_hostname", "agents", ["hostname_lower", "agent_id"], unique=False)
    op.create_table(
        "requests",
        sa.Column("session_id", TEXT, nullable=False),
        sa.Column("rpc", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("request_id", TEXT, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("resource", TEXT, nullable=False),
        sa.PrimaryKeyConstraint(
            "session_id", "rpc", "actor", "request_id", name=op.f("requests_pkey")
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "sessions",
        sa.Column("session_id", TEXT, nullable=False),
        sa.Column("agent_id", TEXT, nullable=False),
        sa.Column("hostname", TEXT, nullable=False),
        sa.Column("playbook", TEXT, nullable=False),
        sa.Column("description", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("status_reason", TEXT, nullable=False),
        sa.Column("execution_count", sa.Integer(), nullable=False),
        sa.Column("failed_execution_count", sa.Integer(), nullable=False),
        sa.Column("insight_count", sa.Integer(), nullable=False),
        sa.Column("summary", TEXT, nullable=False),
        sa.Column("start_time", sa.BigInteger(), nullable=False),
        sa.Column("start_actor", TEXT, nullable=False),
        sa.Column("last_activity_time", sa.BigInteger(), nullable=False),
        sa.Column("submit_time", sa.BigInteger(), nullable=True),
        sa.Column("submit_actor", TEXT, nullable=True),
        sa.Column("end_time", sa.BigInteger(), nullable=True),
        sa.Column("end_actor", TEXT, nullable=True),
        sa.Column("review_comment", TEXT, nullable=False),
        sa.Column("hostname_lower", TEXT, nullable=False),
        sa.CheckConstraint(
            "(status IN ('completed', 'failed', 'interrupted')) = (end_time IS NOT NULL)"
            " AND (end_time IS NULL) = (end_actor IS NULL)",
            name=op.f("sessions_final_has_time_and_actor"),
        ),
        sa.CheckConstraint(
            "(status IN ('pending_review', 'completed')) = (submit_time IS NOT NULL)"
            " AND (submit_time IS NULL) = (submit_actor IS NULL)",
            name=op.f("sessions_submitted_has_time_and_actor"),
        ),
        sa.CheckConstraint(
            "status <> 'completed' OR end_actor LIKE 'human:%'",
            name=op.f("sessions_completed_by_human"),
        ),
        sa.CheckConstraint(
            "status IN ('running', 'pending_review', 'completed', 'failed', 'interrupted')",
            name=op.f("sessions_status_is_known"),
        ),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.agent_id"], name=op.f("sessions_agent_id_exists")
        ),
        sa.PrimaryKeyConstraint("session_id", name=op.f("sessions_pkey")),
    )
    op.create_index(
        "sessions_by_agent", "sessions", ["agent_id", "start_time", "session_id"], unique=False
    )
    op.create_index(
        "sessions_by_hostname",
        "sessions",
        ["hostname_lower", "start_time", "session_id"],
        unique=False,
    )
    op.create_index(
        "sessions_by_playbook", "sessions", ["playbook", "start_time", "session_id"], unique=False
    )
    op.create_index(
        "sessions_by_playbook_status",
        "sessions",
        ["playbook", "status", "start_time", "session_id"],
        unique=False,
    )
    op.create_index("sessions_by_start", "sessions", ["start_time", "session_id"], unique=False)
    op.create_index(
        "sessions_by_status", "sessions", ["status", "start_time", "session_id"], unique=False
    )
    op.create_index(
        "sessions_one_running_per_agent",
        "sessions",
        ["agent_id"],
        unique=True,
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.create_table(
        "executions",
        sa.Column("session_id", TEXT, nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("execution_id", TEXT, nullable=False),
        sa.Column("command", TEXT, nullable=False),
        sa.Column("capability", TEXT, nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("start_time", sa.BigInteger(), nullable=False),
        sa.Column("end_time", sa.BigInteger(), nullable=True),
        sa.Column("record_time", sa.BigInteger(), nullable=False),
        sa.Column("finish_record_time", sa.BigInteger(), nullable=True),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("output_size", sa.BigInteger(), nullable=True),
        sa.Column("output_sha256", sa.LargeBinary(), nullable=True),
        sa.Column("error_output_size", sa.BigInteger(), nullable=True),
        sa.Column("error_output_sha256", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("sequence >= 1", name=op.f("executions_sequence_from_one")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.session_id"], name=op.f("executions_session_id_exists")
        ),
        sa.PrimaryKeyConstraint("session_id", "sequence", name=op.f("executions_pkey")),
    )
    op.create_index(
        "executions_failed",
        "executions",
        ["session_id", "sequence"],
        unique=False,
        sqlite_where=sa.text(
            "finish_record_time IS NOT NULL AND (exit_code IS NULL OR exit_code <> 0)"
        ),
        postgresql_where=sa.text(
            "finish_record_time IS NOT NULL AND (exit_code IS NULL OR exit_code <> 0)"
        ),
    )
    op.create_table(
        "insights",
        sa.Column("session_id", TEXT, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("category", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("value", TEXT, nullable=False),
        sa.Column("severity", TEXT, nullable=False),
        sa.Column("evidence", TEXT, nullable=False),
        sa.Column("affected_resources", TEXT, nullable=False),
        sa.Column("remediation_steps", TEXT, nullable=False),
        sa.Column("execution_sequences", TEXT, nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.session_id"], name=op.f("insights_session_id_exists")
        ),
        sa.PrimaryKeyConstraint("session_id", "position", "revision", name=op.f("insights_pkey")),
        sa.UniqueConstraint(
            "session_id", "category", "key", "revision", name="insights_one_per_category_and_key"
        ),
    )
    op.create_table(
        "session_recorders",
        sa.Column("session_id", TEXT, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.session_id"],
            name=op.f("session_recorders_session_id_exists"),
        ),
        sa.PrimaryKeyConstraint("session_id", "actor", name=op.f("session_recorders_pkey")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "outputs",
        sa.Column("session_id", TEXT, nullable=False),
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("stream", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("byte_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("stream IN (1, 2)", name=op.f("outputs_stream_is_known")),
        sa.ForeignKeyConstraint(
            ["session_id", "sequence"],
            ["executions.session_id", "executions.sequence"],
            name="outputs_execution_exists",
        ),
        sa.PrimaryKeyConstraint(
            "session_id", "sequence", "stream", "byte_offset", name=op.f("outputs_pkey")
        ),
    )
