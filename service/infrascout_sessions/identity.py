"""Who is calling."""

from contextvars import ContextVar

from infrascout_sessions.models import Principal

caller: ContextVar[Principal] = ContextVar("caller")
"""The caller of the RPC that is being answered; the interceptor sets it before anything else."""


class InvalidProofError(Exception):
    """A proof that does not hold; the text is for the log, and does not show the proof."""
