"""What stands before every RPC: who calls, whether they may, and whether there is room."""

from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from infrascout_sessions.errors import ProofMissingOrInvalid
from infrascout_sessions.identity import caller
from infrascout_sessions.interceptors import access
from infrascout_sessions.interceptors.access_log import AccessLog
from infrascout_sessions.interceptors.bounds import Bounds
from infrascout_sessions.interceptors.proofs import Proofs
from infrascout_sessions.models import Principal, Role

# A caller with a stream open is looked at again when something passes.
_LOOK_INTERVAL_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Guard:
    """What is asked of callers; `roles` has the role of each RPC by its path."""

    roles: Mapping[str, Role]
    proofs: Proofs
    bounds: Bounds
    access_log: AccessLog


class Passage:
    """One call on its way past the guard, for an RPC that asks for a role or for none."""

    __slots__ = (
        "_context",
        "_entered",
        "_guard",
        "_looked",
        "_peer",
        "_role",
        "_streams",
        "principal",
    )

    def __init__(self, guard: Guard, role: Role | None, streams: bool, context: Any) -> None:
        self._guard = guard
        self._role = role
        self._streams = streams
        self._context = context
        self._entered = False
        self._looked = 0.0
        self._peer = ""
        self.principal: Principal | None = None

    async def enter(self) -> None:
        """Let the call in, as its caller.

        Raises `ProofMissingOrInvalid`, `RoleMissing`, `ReviewerNotHuman`, `QuotaExceeded`,
        `DatabaseUnavailable`.
        """
        if self._role is None:
            return
        # Now: a stream that nobody reads any more is closed by the garbage collector, perhaps after
        # gRPC's part of the context, and then to ask that ends the process.
        self._peer = self._context.peer()
        principal = self.principal = await self._guard.proofs.principal(self._context)
        refusal = access.refusal(principal, self._role)
        if refusal is not None:
            raise refusal
        self._guard.bounds.enter(principal.actor, self._streams)
        self._entered = True
        caller.set(principal)
        self._looked = monotonic()

    async def go_on(self) -> None:
        """Look at the caller again, if that was some time ago. Raises as `enter` does."""
        now = monotonic()
        if (
            self.principal is None
            or self._role is None
            or now - self._looked < (_LOOK_INTERVAL_SECONDS)
        ):
            return
        self._looked = now
        principal = await self._guard.proofs.principal(self._context)
        if principal.actor != self.principal.actor:
            raise ProofMissingOrInvalid
        refusal = access.refusal(principal, self._role)
        if refusal is not None:
            raise refusal

    def leave(self) -> None:
        """The call has ended."""
        if self._entered and self.principal is not None:
            self._guard.bounds.leave(self.principal.actor, self._streams)

    def note(self, method: str, result: str | None, **fields: Any) -> None:
        """Write the call into the access log, if its RPC asks for a role."""
        if self._role is not None and self._guard.access_log.apart:
            self._guard.access_log.write(**self._who(), method=method, result=result, **fields)

    def caller(self) -> Mapping[str, str | None]:
        """Who calls, for the log's own line; nothing if the access log has it."""
        return {} if self._role is None or self._guard.access_log.apart else self._who()

    def _who(self) -> Mapping[str, str | None]:
        principal = self.principal
        return {
            "subject": None if principal is None else principal.subject,
            "kind": None if principal is None else principal.kind,
            "proof": None if principal is None else principal.proof,
            "peer": self._peer,
        }
