"""What stands before every RPC: who calls, whether they may, and whether there is room."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from infrascout_sessions.errors import ProofMissingOrInvalid, Refusal
from infrascout_sessions.identity import caller
from infrascout_sessions.interceptors import access
from infrascout_sessions.interceptors.access_log import AccessLog
from infrascout_sessions.interceptors.bounds import Bounds
from infrascout_sessions.interceptors.open_streams import OpenStreams
from infrascout_sessions.interceptors.proofs import Proofs
from infrascout_sessions.models import Principal, Role

# A caller with a stream open is looked at again when something passes, no more often than this.
_LOOK_INTERVAL_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Guard:
    """What is asked of callers; `roles` has the role of each RPC by its path."""

    roles: Mapping[str, Role]
    proofs: Proofs
    bounds: Bounds
    access_log: AccessLog
    open_streams: OpenStreams


class Passage:
    """One call on its way past the guard, for an RPC that asks for a role or for none."""

    __slots__ = (
        "_context",
        "_entered",
        "_guard",
        "_looked",
        "_peer",
        "_proof",
        "_role",
        "_streams",
        "_task",
        "_waits",
        "ended",
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
        self._proof: tuple[bytes, Role] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._waits = False
        self.principal: Principal | None = None
        self.ended: Refusal | None = None
        """Why a stream that was under way must end."""

    async def enter(self) -> None:
        """Let the call in, as its caller.

        Raises `ProofMissingOrInvalid`, `RoleMissing`, `ReviewerNotHuman`, `QuotaExceeded`,
        `DatabaseUnavailable`.
        """
        if self._role is None:
            # Single calls are probes, which must find out whatever else there is.
            if self._streams:
                self._guard.bounds.enter_open()
                self._entered = True
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

    def watch(self) -> None:
        """Look at the caller also while nothing passes; called in the task that sends."""
        if self._role is None:
            return
        digest = self._guard.proofs.digest(self._context)
        # One without a proof of its own has nothing that could be revoked.
        if digest is not None:
            self._proof = (digest, self._role)
            self._task = asyncio.current_task()
            self._guard.open_streams.add(self._proof, self)
        self._waits = True

    async def go_on(self) -> None:
        """Something passes: look at the caller if that was some time ago. Raises as `enter`."""
        self._waits = False
        now = monotonic()
        if self.principal is None or now - self._looked < _LOOK_INTERVAL_SECONDS:
            return
        self._looked = now
        await self.look()

    def wait(self) -> None:
        """Nothing passes until `go_on`: `end` may cancel the task. Raises what has ended it."""
        if self.ended is not None:
            raise self.ended
        self._waits = True

    def recall(self) -> bool:
        """Whether the caller is remembered, as one who may still call. Raises as `enter` does."""
        principal = self._guard.proofs.recall(self._context)
        if principal is not None:
            self._check(principal)
        return principal is not None

    async def look(self) -> None:
        """Look at the caller again. Raises as `enter` does."""
        self._check(await self._guard.proofs.again(self._context))

    def end(self, error: Refusal) -> None:
        """The call must end with this error, which `ended` says once the task is cancelled."""
        if self.ended is None:
            self.ended = error
            # While it sends, gRPC would take a cancel for the client's.
            if self._waits and self._task is not None:
                self._task.cancel()

    def _check(self, principal: Principal) -> None:
        """Raise unless this is still the caller, who may still make this call."""
        if self.principal is None or self._role is None:
            return
        if principal.actor != self.principal.actor:
            raise ProofMissingOrInvalid
        refusal = access.refusal(principal, self._role)
        if refusal is not None:
            raise refusal

    def leave(self) -> None:
        """The call has ended, but for telling its caller."""
        self._waits = False
        if self._proof is not None:
            self._guard.open_streams.discard(self._proof, self)
        if not self._entered:
            return
        if self.principal is not None:
            self._guard.bounds.leave(self.principal.actor, self._streams)
        else:
            self._guard.bounds.leave_open()

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
