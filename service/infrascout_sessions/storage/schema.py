"""The tables. Constraints are named after their rule, indexes say which query they serve.

Times are microseconds since the epoch, actors `kind:subject`. Outputs are bytes, whatever a message
says: PostgreSQL's text cannot hold NUL. A list inside a record is JSON text.
"""

import sqlalchemy as sa

from infrascout_sessions.lifecycle import Status

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_exists",
        "ck": "%(table_name)s_%(constraint_name)s",
    }
)

# Ordered and compared byte by byte on every database.
Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, Text, nullable=nullable)


def _time(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False)


agents = sa.Table(
    "agents",
    metadata,
    sa.Column("agent_id", Text, primary_key=True),
    _text("hostname"),
    _text("hostname_lower"),
    _text("os"),
    _text("capabilities"),
    _time("register_time"),
    _time("update_time"),
    # ListAgents of a host, in order.
    sa.Index("agents_by_hostname", "hostname_lower", "agent_id"),
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", Text, primary_key=True),
    sa.Column("agent_id", Text, sa.ForeignKey(agents.c.agent_id), nullable=False),
    _text("hostname"),
    _text("playbook"),
    _text("description"),
    _text("status"),
    _text("status_reason"),
    _count("execution_count"),
    _count("failed_execution_count"),
    _count("insight_count"),
    _text("summary"),
    _time("start_time"),
    _text("start_actor"),
    _time("last_activity_time"),
    _time("submit_time", nullable=True),
    _text("submit_actor", nullable=True),
    _time("end_time", nullable=True),
    _text("end_actor", nullable=True),
    _text("review_comment"),
    _text("hostname_lower"),
    # What was asked of the reviewer's independence; null until there is a review.
    _text("review_independence", nullable=True),
    sa.CheckConstraint(
        f"status IN ({', '.join(repr(status.value) for status in Status)})", name="status_is_known"
    ),
    sa.CheckConstraint(
        "(status IN ('pending_review', 'completed')) = (submit_time IS NOT NULL)"
        " AND (submit_time IS NULL) = (submit_actor IS NULL)",
        name="submitted_has_time_and_actor",
    ),
    sa.CheckConstraint(
        "(status IN ('completed', 'failed', 'interrupted')) = (end_time IS NOT NULL)"
        " AND (end_time IS NULL) = (end_actor IS NULL)",
        name="final_has_time_and_actor",
    ),
    sa.CheckConstraint(
        "status <> 'completed' OR end_actor LIKE 'human:%'", name="completed_by_human"
    ),
    # StartSession. The predicate is text: a bound parameter would never match it (asyncpg).
    sa.Index(
        "sessions_one_running_per_agent",
        "agent_id",
        unique=True,
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    ),
    # ListSessions, each ending in its order.
    sa.Index("sessions_by_start", "start_time", "session_id"),
    sa.Index("sessions_by_status", "status", "start_time", "session_id"),
    sa.Index("sessions_by_agent", "agent_id", "start_time", "session_id"),
    sa.Index("sessions_by_hostname", "hostname_lower", "start_time", "session_id"),
    sa.Index("sessions_by_playbook", "playbook", "start_time", "session_id"),
    sa.Index("sessions_by_playbook_status", "playbook", "status", "start_time", "session_id"),
)

# Who recorded in a session; who started and submitted it stands in its own row.
session_recorders = sa.Table(
    "session_recorders",
    metadata,
    sa.Column("session_id", Text, sa.ForeignKey(sessions.c.session_id), primary_key=True),
    sa.Column("actor", Text, primary_key=True),
    sqlite_with_rowid=False,
)

FAILED = "finish_record_time IS NOT NULL AND (exit_code IS NULL OR exit_code <> 0)"
"""Which executions count as failed."""

UNFINISHED = "finish_record_time IS NULL"
"""Which executions are begun and not finished."""

executions = sa.Table(
    "executions",
    metadata,
    sa.Column("session_id", Text, sa.ForeignKey(sessions.c.session_id), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    _text("execution_id"),
    _text("command"),
    _text("capability"),
    _text("step"),
    sa.Column("exit_code", sa.Integer),
    _time("start_time"),
    _time("end_time", nullable=True),
    _time("record_time"),
    _time("finish_record_time", nullable=True),
    _text("actor"),
    sa.Column("output_size", sa.BigInteger),
    sa.Column("output_sha256", sa.LargeBinary),
    sa.Column("error_output_size", sa.BigInteger),
    sa.Column("error_output_sha256", sa.LargeBinary),
    sa.CheckConstraint("sequence >= 1", name="sequence_from_one"),
    # ListExecutions with follow: those whose end is still to come.
    sa.Index(
        "executions_unfinished",
        "session_id",
        "sequence",
        sqlite_where=sa.text(UNFINISHED),
        postgresql_where=sa.text(UNFINISHED),
    ),
    # ListExecutions with failed_only.
    sa.Index(
        "executions_failed",
        "session_id",
        "sequence",
        sqlite_where=sa.text(FAILED),
        postgresql_where=sa.text(FAILED),
    ),
)

# Chunks of outputs; `stream` is an OutputStream.
outputs = sa.Table(
    "outputs",
    metadata,
    sa.Column("session_id", Text, primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("stream", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("byte_offset", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(
        ["session_id", "sequence"],
        [executions.c.session_id, executions.c.sequence],
        name="outputs_execution_exists",
    ),
    sa.CheckConstraint("stream IN (1, 2)", name="stream_is_known"),
)

# Every revision stays; the newest of a position is the finding as it stands.
insights = sa.Table(
    "insights",
    metadata,
    sa.Column("session_id", Text, sa.ForeignKey(sessions.c.session_id), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
    _text("category"),
    _text("key"),
    _text("value"),
    _text("severity"),
    _text("evidence"),
    _text("affected_resources"),
    _text("remediation_steps"),
    _text("execution_sequences"),
    _time("create_time"),
    _time("update_time"),
    _text("actor"),
    sa.UniqueConstraint(
        "session_id", "category", "key", "revision", name="insights_one_per_category_and_key"
    ),
)

# Bearer tokens; what is kept is the digest, and never a row removed: a name is one caller for good.
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    _text("name"),
    _text("kind"),
    _text("roles"),
    _time("create_time"),
    _time("expire_time", nullable=True),
    _time("last_use_time", nullable=True),
    _time("revoke_time", nullable=True),
    sa.CheckConstraint("kind IN ('human', 'service')", name="kind_is_known"),
    sa.CheckConstraint("kind = 'human' OR roles NOT LIKE '%reviewer%'", name="reviewer_is_human"),
    # `token create` and `token revoke`.
    sa.Index(
        "tokens_one_active_per_name",
        "name",
        unique=True,
        sqlite_where=sa.text("revoke_time IS NULL"),
        postgresql_where=sa.text("revoke_time IS NULL"),
    ),
)

# Writes that may be repeated: what was asked, and which resource came of it.
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("session_id", Text, primary_key=True),
    sa.Column("rpc", Text, primary_key=True),
    sa.Column("actor", Text, primary_key=True),
    sa.Column("request_id", Text, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    _text("resource"),
    sqlite_with_rowid=False,
)
