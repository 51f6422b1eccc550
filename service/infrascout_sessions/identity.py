"""Who is calling."""

from contextvars import ContextVar

from infrascout_sessions.models import LOCAL, Actor

caller: ContextVar[Actor] = ContextVar("caller", default=LOCAL)
"""The actor of the RPC that is being answered."""
